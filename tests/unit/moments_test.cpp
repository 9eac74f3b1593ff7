// Fits of aligned cuts from streamed sums, against numpy on the hidden states themselves
// (tests/golden/maps/make_maps.py), and what must hold for every fit.
#include "profiler/moments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "support/json.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kAll = 1000;  // rows kept of a held-out context
const std::vector<MapForm> kAllForms{MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull};

std::vector<double> flat(const nlohmann::json& rows) {
  std::vector<double> all;
  for (const auto& row : rows)
    for (const auto& x : row) all.push_back(x.get<double>());
  return all;
}

std::vector<double> difference(std::vector<double> y, const std::vector<double>& x) {
  for (size_t i = 0; i < y.size(); ++i) y[i] -= x[i];
  return y;
}

/// Sums and held-out rows of contexts, each of rows of x and r.
struct Part {
  CutMoments sums;
  HeldOut rows;
  explicit Part(int64_t d, int64_t most = kAll) : sums(d), rows(d, most) {}
  Part& add(const std::vector<double>& x, const std::vector<double>& r, int64_t at_once = kAll) {
    const int64_t d = sums.d, n = static_cast<int64_t>(x.size()) / d;
    const TokenWeights weights = weigh_tokens(x, r, d);
    for (int64_t first = 0; first < n; first += at_once) {
      auto part = [&](const std::vector<double>& v, int64_t width) {
        return std::span(v).subspan(static_cast<size_t>(first * width),
                                    static_cast<size_t>(std::min(at_once, n - first) * width));
      };
      sums.add(part(x, d), part(r, d), part(weights.weight, 1));
    }
    ++sums.contexts;
    sums.massive_tokens += std::count(weights.massive.begin(), weights.massive.end(), 1);
    rows.add(x, r, weights);
    return *this;
  }
};

Result<LayerMaps> fit_all(int64_t layer, int64_t rank, const Part& fit, const Part& held_out) {
  return fit_maps({layer, kAllForms, rank}, fit.sums, held_out.sums, held_out.rows);
}

/// W as the map applies it: y = x + W x + b, [out][in].
std::vector<double> dense(const AlignmentMap& m, int64_t d) {
  std::vector<double> w(static_cast<size_t>(d * d));
  for (int64_t o = 0; o < d; ++o)
    for (int64_t i = 0; i < d; ++i) {
      double& to = w[static_cast<size_t>(o * d + i)];
      if (m.form == MapForm::kFull) to = m.weight[static_cast<size_t>(o * d + i)];
      for (int64_t k = 0; k < m.rank; ++k)
        to += static_cast<double>(m.up[static_cast<size_t>(o * m.rank + k)]) *
              m.down[static_cast<size_t>(k * d + i)];
      if (o == i && m.form != MapForm::kFull) to += m.scale[static_cast<size_t>(o)];
    }
  return w;
}

/// As floats hold them.
std::vector<double> random_rows(int64_t count, uint64_t seed, double scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> v(static_cast<size_t>(count));
  for (double& x : v) x = static_cast<float>(scale * normal(random));
  return v;
}

TEST(FitMaps, AgreesWithNumpyWhateverIsAddedAtOnce) {
  auto json = read_json_file(DS_SOURCE_DIR "/tests/golden/maps/maps.json");
  ASSERT_TRUE(json.ok()) << json.status().message();
  auto number = [](const nlohmann::json& v) { return v.is_null() ? std::nan("") : v.get<double>(); };
  auto expect_near = [](double found, double expected, double relative, const char* what) {
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(found)) << what << ": " << found;
    } else {
      EXPECT_NEAR(found, expected, relative * std::max(1e-3, std::abs(expected))) << what;
    }
  };
  int64_t cases = 0, plain = 0;
  for (const auto& c : (*json)["cases"]) {
    for (int64_t at_once : {1, 7, 1000}) {
      SCOPED_TRACE(fmt::format("case {}, {} rows at once", cases, at_once));
      const auto d = c["d"].get<int64_t>();
      auto read = [&](const nlohmann::json& contexts) {
        Part part(d, c["most"].get<int64_t>());
        for (const auto& context : contexts) {
          const std::vector<double> x = flat(context[0]);
          part.add(x, difference(flat(context[1]), x), at_once);
        }
        return part;
      };
      const Part fit = read(c["fit"]), held_out = read(c["held_out"]);
      auto maps = fit_all(3, c["rank"].get<int64_t>(), fit, held_out);
      ASSERT_TRUE(maps.ok()) << maps.status().message();
      auto check = [&](int64_t layer, MapForm form, const MapFit& stated) {
        const auto& want = c["forms"][std::string(map_form_name(form))];
        EXPECT_EQ(layer, 3);
        expect_near(stated.ridge, number(want["ridge"]), 1e-9, "ridge");
        expect_near(stated.plain_error, number(c["plain_error"]), 1e-9, "plain error");
        expect_near(stated.plain_ordinary_error, number(c["plain_ordinary_error"]), 1e-9, "plain, ordinary");
        expect_near(stated.error, number(want["error"]), 1e-6, "error");
        expect_near(stated.ordinary_error, number(want["ordinary_error"]), 1e-6, "ordinary error");
        expect_near(stated.gain_stderr, number(want["gain_stderr"]), 1e-6, "standard error");
        EXPECT_EQ(stated.tokens, fit.sums.tokens + held_out.sums.tokens);
        EXPECT_EQ(stated.contexts, fit.sums.contexts + held_out.sums.contexts);
        EXPECT_EQ(stated.held_out_tokens, held_out.sums.tokens);
        EXPECT_EQ(stated.massive_tokens, c["massive"].get<int64_t>());
        return want;
      };
      EXPECT_EQ(maps->maps.size() + maps->plain.size(), 3u);
      for (const PlainLayer& p : maps->plain) {
        SCOPED_TRACE(map_form_name(p.form));
        EXPECT_EQ(check(p.layer, p.form, p.fit)["plain"], true);
        ++plain;
      }
      for (const AlignmentMap& m : maps->maps) {
        SCOPED_TRACE(map_form_name(m.form));
        const auto want = check(m.layer, m.form, m.fit);
        EXPECT_EQ(want["plain"], false);
        std::vector<double> w = dense(m, d);
        for (int64_t o = 0; o < d; ++o) {
          EXPECT_NEAR(m.bias[static_cast<size_t>(o)], want["b"][static_cast<size_t>(o)].get<double>(), 1e-5);
          for (int64_t i = 0; i < d; ++i)
            EXPECT_NEAR(w[static_cast<size_t>(o * d + i)],
                        want["B"][static_cast<size_t>(i)][static_cast<size_t>(o)].get<double>(), 1e-6);
        }
      }
    }
    ++cases;
  }
  EXPECT_EQ(cases, 7);
  EXPECT_EQ(plain, 3 * 3) << "the three forms of the case without any signal";
}

TEST(FitMaps, OneModelStaysPlain) {
  const int64_t d = 16;
  const std::vector<double> x = random_rows(200 * d, 1), held = random_rows(30 * d, 2), zero(x.size());
  Part fit(d), held_out(d);
  fit.add(x, zero);
  held_out.add(held, std::vector<double>(held.size()));
  auto maps = fit_all(1, 4, fit, held_out);
  ASSERT_TRUE(maps.ok()) << maps.status().message();
  EXPECT_TRUE(maps->maps.empty()) << "the plain cut wins ties";
  ASSERT_EQ(maps->plain.size(), 3u);
  for (const PlainLayer& p : maps->plain) EXPECT_EQ(p.fit.plain_error, 0);
  // Maps that are made all the same are the identity.
  maps = fit_maps({1, kAllForms, 4, /*control=*/true}, fit.sums, held_out.sums, held_out.rows);
  ASSERT_TRUE(maps.ok()) << maps.status().message();
  ASSERT_EQ(maps->maps.size(), 3u);
  for (const AlignmentMap& m : maps->maps) {
    for (double w : dense(m, d)) EXPECT_EQ(w, 0);
    for (float b : m.bias) EXPECT_EQ(b, 0);
    EXPECT_EQ(m.fit.error, 0);
  }
}

TEST(FitMaps, FindsAnAffineMapThatIsThere) {
  const int64_t d = 8, n = 300;
  std::vector<double> x = random_rows(n * d, 3), r(x.size()), B = random_rows(d * d, 4);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t o = 0; o < d; ++o) {
      double& to = r[static_cast<size_t>(t * d + o)];
      to = 0.5 * static_cast<double>(o);
      for (int64_t i = 0; i < d; ++i)
        to += x[static_cast<size_t>(t * d + i)] * B[static_cast<size_t>(i * d + o)];
    }
  Part part(d);
  part.add(x, r);
  auto maps = fit_all(1, d, part, part);
  ASSERT_TRUE(maps.ok()) << maps.status().message();
  ASSERT_EQ(maps->maps.size(), 3u);
  EXPECT_GT(maps->maps[0].fit.error, 0.1) << "a diagonal is not enough";
  EXPECT_LT(maps->maps[1].fit.error, 1e-9) << "with all directions low-rank is full";
  EXPECT_LT(maps->maps[2].fit.error, 1e-9);
  EXPECT_LT(maps->maps[2].fit.ridge, 1e-8) << "the search goes on where the best ridge stands at the end";
  // Where even that is an end, it says so.
  const bool at_limit = maps->maps[2].fit.ridge <= 1e-12;
  EXPECT_EQ(std::count_if(maps->limits.begin(), maps->limits.end(),
                          [](const std::string& l) { return l.find("layer 1, full") == 0; }),
            at_limit ? 1 : 0);
}

TEST(FitMaps, OnlyTheFormsThatAreAskedFor) {
  const int64_t d = 8;
  Part fit(d), held_out(d);
  const std::vector<double> x = random_rows(100 * d, 5), held = random_rows(30 * d, 6);
  fit.add(x, x);
  held_out.add(held, held);
  auto maps = fit_maps({2, {MapForm::kLowRank}, 3}, fit.sums, held_out.sums, held_out.rows);
  ASSERT_TRUE(maps.ok()) << maps.status().message();
  ASSERT_EQ(maps->maps.size(), 1u);
  EXPECT_EQ(maps->maps[0].form, MapForm::kLowRank);
}

TEST(TokenWeights, AreRelativeAndMassiveTokensAreFoundInEitherModel) {
  const int64_t d = 2;
  //                            plain     massive in x   in y only       nothing
  const std::vector<double> x{3, 4, 3, 4, 300, 400, 3, 4, 3, 4, 0, 0, 3, 4};
  const std::vector<double> y{3, 4, 6, 8, 3, 4, 300, 400, 3, 4, 0, 0, 3, 4};
  TokenWeights weights = weigh_tokens(x, difference(y, x), d);
  EXPECT_THAT(weights.massive, ::testing::ElementsAre(0, 0, 1, 1, 0, 0, 0));
  EXPECT_DOUBLE_EQ(weights.weight[0], 2.0 / 50);
  EXPECT_DOUBLE_EQ(weights.weight[1], 2.0 / 125);
  EXPECT_DOUBLE_EQ(weights.weight[2], 10 * 2.0 / 250025) << "counts as ten";
  EXPECT_EQ(weights.weight[2], weights.weight[3]);
  EXPECT_EQ(weights.weight[5], 0);
}

/// As real models have it: the first token's hidden state is 150 times the others', and what it differs by
/// from the sender's has nothing to do with theirs.
class MassiveToken : public ::testing::Test {
 protected:
  static constexpr int64_t d_ = 128, tokens_ = 400, contexts_ = 12;
  const std::vector<double> mix_ = random_rows(d_ * d_, 11, 0.02);
  Part fit_{d_}, held_out_{d_};

  /// `massive`: with that token; `weighted`: by its norm, or each token as 1.
  Result<LayerMaps> fit(bool massive, bool weighted) {
    Part fit(d_), held_out(d_);
    const std::vector<double> far = random_rows(d_, 12, 150), moved = random_rows(d_, 13, 15);
    for (uint64_t c = 0; c < contexts_; ++c) {
      std::vector<double> x = random_rows(tokens_ * d_, 100 + c), r = random_rows(tokens_ * d_, 200 + c, 0.1);
      for (int64_t t = 0; t < tokens_; ++t)
        for (int64_t i = 0; i < d_; ++i)
          for (int64_t o = 0; o < d_; ++o)
            r[static_cast<size_t>(t * d_ + o)] +=
                x[static_cast<size_t>(t * d_ + i)] * mix_[static_cast<size_t>(i * d_ + o)];
      // Nor is it quite the same in every context.
      const std::vector<double> own = random_rows(d_, 300 + c, 15), apart = random_rows(d_, 400 + c, 15);
      for (size_t i = 0; i < static_cast<size_t>(d_); ++i) {
        x[i] = far[i] + own[i];
        r[i] = moved[i] + apart[i];
      }
      if (!massive) {
        x.erase(x.begin(), x.begin() + d_);
        r.erase(r.begin(), r.begin() + d_);
      }
      const TokenWeights weights = weigh_tokens(x, r, d_);
      Part& part = c % 5 == 4 ? held_out : fit;
      part.rows.add(x, r, weights);
      part.sums.add(x, r, weighted ? weights.weight : std::vector<double>(weights.weight.size(), 1.0));
      ++part.sums.contexts;
      part.sums.massive_tokens += std::count(weights.massive.begin(), weights.massive.end(), 1);
    }
    return fit_all(1, d_ / 2, fit, held_out);
  }
};

TEST_F(MassiveToken, LeavesTheOthersTheMapThatTheyHaveWithoutIt) {
  auto with = fit(true, true), without = fit(false, true), unweighted = fit(true, false);
  for (auto* maps : {&with, &without, &unweighted}) ASSERT_TRUE(maps->ok()) << maps->status().message();
  ASSERT_EQ(with->maps.size(), 3u);
  ASSERT_EQ(without->maps.size(), 3u);
  for (size_t i = 1; i < 3; ++i) {  // a diagonal does not fit them
    SCOPED_TRACE(map_form_name(with->maps[i].form));
    const MapFit &robust = with->maps[i].fit, &alone = without->maps[i].fit;
    EXPECT_EQ(robust.massive_tokens, contexts_);
    EXPECT_EQ(alone.massive_tokens, 0);
    EXPECT_EQ(alone.ordinary_error, alone.error);
    EXPECT_NEAR(robust.plain_ordinary_error, alone.plain_ordinary_error, 1e-3 * alone.plain_ordinary_error);
    EXPECT_NEAR(robust.ordinary_error, alone.ordinary_error, 0.05 * alone.ordinary_error);
    EXPECT_LT(robust.ordinary_error, 0.9 * robust.plain_ordinary_error);
  }
  // What each token counting alike makes of it.
  const LayerMaps& old = *unweighted;
  ASSERT_FALSE(old.maps.empty());
  EXPECT_GT(old.maps.back().fit.ordinary_error, 1.5 * without->maps[2].fit.ordinary_error);
}

TEST(FitMaps, SaysWhatItCannotFit) {
  const int64_t d = 8;
  auto of = [&](const std::vector<double>& x, const std::vector<double>& r) { return Part(d).add(x, r); };
  auto made = [&](int64_t n, uint64_t seed) {
    return of(random_rows(n * d, seed), random_rows(n * d, seed + 1));
  };
  auto failure = [&](const Part& fit, const Part& held_out) {
    auto maps = fit_all(5, 2, fit, held_out);
    EXPECT_FALSE(maps.ok());
    return maps.ok() ? Status() : maps.status();
  };
  Status few = failure(made(15, 1), made(4, 2));
  EXPECT_EQ(few.code(), Code::kInfeasible);
  EXPECT_THAT(few.message(), AllOf(HasSubstr("layer 5: 15 tokens to fit on and 4 to choose the ridge on"),
                                   HasSubstr("need at least 16 and 1"), HasSubstr("about 21 tokens in all")));
  EXPECT_THAT(failure(made(15, 1), Part(d)).message(), HasSubstr("and 0 to choose the ridge on"));
  std::vector<double> flat_rows = random_rows(40 * d, 3);
  for (size_t i = 0; i < flat_rows.size(); i += static_cast<size_t>(d))
    flat_rows[i + 2] = flat_rows[i + 5] = 1.5;
  Status singular = failure(of(flat_rows, random_rows(40 * d, 4)), made(9, 5));
  EXPECT_EQ(singular.code(), Code::kInfeasible);
  EXPECT_THAT(singular.message(),
              AllOf(HasSubstr("layer 5: the sender's hidden states span 6 of 8 directions"),
                    HasSubstr("--align-fallback plain")));
  std::vector<double> bad = random_rows(40 * d, 6);
  bad[17] = std::nan("");
  Status nan = failure(of(bad, random_rows(40 * d, 7)), made(9, 8));
  EXPECT_EQ(nan.code(), Code::kCorrupt);
  EXPECT_THAT(nan.message(), HasSubstr("not finite"));
}

}  // namespace
}  // namespace ds
