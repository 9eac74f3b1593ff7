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

std::vector<double> flat(const nlohmann::json& rows) {
  std::vector<double> all;
  for (const auto& row : rows)
    for (const auto& x : row) all.push_back(x.get<double>());
  return all;
}

CutMoments moments_of(int64_t d, const std::vector<double>& x, const std::vector<double>& r,
                      int64_t at_once) {
  CutMoments m(d);
  const auto rows = static_cast<int64_t>(x.size()) / d;
  for (int64_t first = 0; first < rows; first += at_once) {
    auto part = [&](const std::vector<double>& v) {
      return std::span(v).subspan(static_cast<size_t>(first * d),
                                  static_cast<size_t>(std::min(at_once, rows - first) * d));
    };
    m.add(part(x), part(r), std::min(at_once, rows - first));
  }
  ++m.contexts;
  return m;
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

std::vector<double> random_rows(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> v(static_cast<size_t>(count));
  for (double& x : v) x = normal(random);
  return v;
}

TEST(FitMaps, AgreesWithNumpyWhateverIsAddedAtOnce) {
  auto json = read_json_file(DS_SOURCE_DIR "/tests/golden/maps/maps.json");
  ASSERT_TRUE(json.ok()) << json.status().message();
  int64_t cases = 0;
  for (const auto& c : (*json)["cases"]) {
    for (int64_t at_once : {1, 7, 1000}) {
      SCOPED_TRACE(fmt::format("case {}, {} rows at once", cases, at_once));
      const auto d = c["d"].get<int64_t>();
      CutMoments fit = moments_of(d, flat(c["fit"][0]), flat(c["fit"][1]), at_once);
      CutMoments held_out = moments_of(d, flat(c["held_out"][0]), flat(c["held_out"][1]), at_once);
      auto maps = fit_maps(3, c["rank"].get<int64_t>(), fit, held_out);
      ASSERT_TRUE(maps.ok()) << maps.status().message();
      ASSERT_EQ(maps->size(), 3u);
      for (const AlignmentMap& m : *maps) {
        const auto& want = c["forms"][std::string(map_form_name(m.form))];
        EXPECT_EQ(m.layer, 3);
        EXPECT_NEAR(m.fit.ridge, c["ridge"].get<double>(), 1e-12);
        EXPECT_NEAR(m.fit.plain_error, c["plain_error"].get<double>(), 1e-9);
        EXPECT_NEAR(m.fit.error, want["error"].get<double>(), 1e-9) << map_form_name(m.form);
        EXPECT_EQ(m.fit.tokens, fit.tokens + held_out.tokens);
        EXPECT_EQ(m.fit.held_out_tokens, held_out.tokens);
        std::vector<double> w = dense(m, d);
        for (int64_t o = 0; o < d; ++o) {
          EXPECT_NEAR(m.bias[static_cast<size_t>(o)], want["b"][static_cast<size_t>(o)].get<double>(), 1e-5);
          for (int64_t i = 0; i < d; ++i)
            EXPECT_NEAR(w[static_cast<size_t>(o * d + i)],
                        want["B"][static_cast<size_t>(i)][static_cast<size_t>(o)].get<double>(), 1e-5);
        }
      }
    }
    ++cases;
  }
  EXPECT_EQ(cases, 3);
}

TEST(FitMaps, OneModelGivesTheIdentityExactly) {
  const int64_t d = 16, n = 200;
  std::vector<double> x = random_rows(n * d, 1), zero(x.size());
  auto maps = fit_maps(1, 4, moments_of(d, x, zero, 50),
                       moments_of(d, random_rows(30 * d, 2), std::vector<double>(30 * d), 30));
  ASSERT_TRUE(maps.ok()) << maps.status().message();
  for (const AlignmentMap& m : *maps) {
    for (double w : dense(m, d)) EXPECT_EQ(w, 0);
    for (float b : m.bias) EXPECT_EQ(b, 0);
    EXPECT_EQ(m.fit.error, 0);
    EXPECT_EQ(m.fit.plain_error, 0);
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
  CutMoments fit = moments_of(d, x, r, 100);
  auto maps = fit_maps(1, d, fit, fit);
  ASSERT_TRUE(maps.ok()) << maps.status().message();
  EXPECT_GT((*maps)[0].fit.error, 0.1) << "a diagonal is not enough";
  EXPECT_LT((*maps)[1].fit.error, 1e-9) << "with all directions low-rank is full";
  EXPECT_LT((*maps)[2].fit.error, 1e-9);
  EXPECT_EQ((*maps)[2].fit.ridge, 1e-8);
}

TEST(FitMaps, SaysWhatItCannotFit) {
  const int64_t d = 8;
  auto made = [&](int64_t n, uint64_t seed) {
    return moments_of(d, random_rows(n * d, seed), random_rows(n * d, seed + 1), n);
  };
  auto failure = [&](const CutMoments& fit, const CutMoments& held_out) {
    auto maps = fit_maps(5, 2, fit, held_out);
    EXPECT_FALSE(maps.ok());
    return maps.ok() ? Status() : maps.status();
  };
  Status few = failure(made(15, 1), made(4, 2));
  EXPECT_EQ(few.code(), Code::kInfeasible);
  EXPECT_THAT(few.message(), AllOf(HasSubstr("layer 5: 15 tokens to fit on and 4 to choose the ridge on"),
                                   HasSubstr("need at least 16 and 1"), HasSubstr("about 21 tokens in all")));
  EXPECT_THAT(failure(made(15, 1), CutMoments(d)).message(), HasSubstr("and 0 to choose the ridge on"));
  std::vector<double> flat_rows = random_rows(40 * d, 3);
  for (size_t i = 0; i < flat_rows.size(); i += static_cast<size_t>(d))
    flat_rows[i + 2] = flat_rows[i + 5] = 1.5;
  Status singular = failure(moments_of(d, flat_rows, random_rows(40 * d, 4), 40), made(9, 5));
  EXPECT_EQ(singular.code(), Code::kInfeasible);
  EXPECT_THAT(singular.message(),
              AllOf(HasSubstr("layer 5: the sender's hidden states span 6 of 8 directions"),
                    HasSubstr("--align-fallback plain")));
  std::vector<double> bad = random_rows(40 * d, 6);
  bad[17] = std::nan("");
  Status nan = failure(moments_of(d, bad, random_rows(40 * d, 7), 40), made(9, 8));
  EXPECT_EQ(nan.code(), Code::kCorrupt);
  EXPECT_THAT(nan.message(), HasSubstr("not finite"));
}

}  // namespace
}  // namespace ds
