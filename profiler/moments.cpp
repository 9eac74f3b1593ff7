#include "profiler/moments.h"

#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <functional>

namespace ds {
namespace {

using Matrix = std::vector<double>;  // by rows

int blas(int64_t n) { return static_cast<int>(n); }
size_t square(int64_t d) { return static_cast<size_t>(d) * static_cast<size_t>(d); }

/// a * b, or a^T * b, of matrices [d][d].
Matrix product(const Matrix& a, const Matrix& b, int64_t d, bool transpose_a = false) {
  Matrix c(square(d));
  cblas_dgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, CblasNoTrans, blas(d), blas(d), blas(d),
              1, a.data(), blas(d), b.data(), blas(d), 0, c.data(), blas(d));
  return c;
}

/// Eigenvalues, ascending; `a` becomes the eigenvectors, in columns.
Result<std::vector<double>> eigen(Matrix& a, int64_t d) {
  std::vector<double> values(static_cast<size_t>(d));
  if (LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'U', blas(d), a.data(), blas(d), values.data()) != 0)
    return error(Code::kInfeasible, "the eigenvalues of a {0} x {0} matrix did not converge", d);
  return values;
}

/// Sums about the weighted means.
struct Centred {
  Matrix xx, xr;
  std::vector<double> mean_x, mean_r;
  double weight = 0;
  double variance_x = 0;  // mean over elements, per weight
};

Centred centred(const CutMoments& m) {
  const auto d = static_cast<size_t>(m.d);
  Centred c{m.xx, m.xr, m.sx, m.sr, m.weight};
  for (size_t i = 0; i < d; ++i) {
    c.mean_x[i] /= c.weight;
    c.mean_r[i] /= c.weight;
  }
  for (size_t i = 0; i < d; ++i) {
    for (size_t j = 0; j < d; ++j) {
      if (j < i) {
        c.xx[i * d + j] = c.xx[j * d + i];
      } else {
        c.xx[i * d + j] -= m.sx[i] * c.mean_x[j];
      }
      c.xr[i * d + j] -= m.sx[i] * c.mean_r[j];
    }
    c.variance_x += c.xx[i * d + i];
  }
  c.variance_x /= c.weight * static_cast<double>(m.d);
  return c;
}

/// The penalty on |B|^2 that a ridge, a share of the variance of x, is for these sums.
double penalty(double ridge, const Centred& c) { return ridge * c.variance_x * c.weight; }

std::vector<double> bias_of(const Matrix& B, const Centred& c) {
  const size_t d = c.mean_x.size();
  std::vector<double> b = c.mean_r;
  for (size_t i = 0; i < d; ++i)
    for (size_t j = 0; j < d; ++j) b[j] -= c.mean_x[i] * B[i * d + j];
  return b;
}

/// (xx + lambda)^-1 * right.
Result<Matrix> solve(const Centred& c, double lambda, Matrix right, int64_t d) {
  Matrix a = c.xx;
  for (int64_t i = 0; i < d; ++i) a[static_cast<size_t>(i * d + i)] += lambda;
  if (LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', blas(d), blas(d), a.data(), blas(d), right.data(), blas(d)) != 0)
    return error(Code::kInfeasible, "the normal equations are singular");
  return right;
}

std::vector<double> diagonal(const Centred& c, double lambda, int64_t d) {
  std::vector<double> scale;
  for (int64_t i = 0; i < d; ++i) {
    auto at = static_cast<size_t>(i * d + i);
    scale.push_back(c.xr[at] == 0 ? 0 : c.xr[at] / (c.xx[at] + lambda));
  }
  return scale;
}

/// B of a form: the whole matrix and what it is made of.
struct Map {
  Matrix B;
  std::vector<double> up, down, scale;  // [d][r], [r][d], [d]
};

Map diagonal_map(const Centred& c, double lambda, int64_t d) {
  Map map{Matrix(square(d)), {}, {}, diagonal(c, lambda, d)};
  for (size_t i = 0; i < map.scale.size(); ++i) map.B[i * map.scale.size() + i] = map.scale[i];
  return map;
}

/// The diagonal first; of what it leaves the best fit of that rank (reduced-rank regression).
Result<Map> low_rank_map(const Centred& c, double lambda, int64_t d, int64_t rank) {
  const auto n = static_cast<size_t>(d), r = static_cast<size_t>(rank);
  Map low;
  low.scale = diagonal(c, lambda, d);
  Matrix rest = c.xr;
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) rest[i * n + j] -= c.xx[i * n + j] * low.scale[j];
  DS_ASSIGN(Matrix B, solve(c, lambda, rest, d));
  Matrix v = product(B, rest, d, /*transpose_a=*/true);  // B^T (xx + lambda) B, symmetric
  DS_ASSIGN(auto values, eigen(v, d));
  low.up.resize(n * r);
  for (size_t i = 0; i < n; ++i)
    for (size_t k = 0; k < r; ++k) low.up[i * r + k] = v[i * n + (n - 1 - k)];
  low.down.assign(r * n, 0);
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasTrans, blas(rank), blas(d), blas(d), 1, low.up.data(),
              blas(rank), B.data(), blas(d), 0, low.down.data(), blas(d));
  low.B.assign(n * n, 0);
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasTrans, blas(d), blas(d), blas(rank), 1, low.down.data(),
              blas(d), low.up.data(), blas(rank), 0, low.B.data(), blas(d));
  for (size_t i = 0; i < n; ++i) low.B[i * n + i] += low.scale[i];
  return low;
}

/// Of no form: B = 0.
Map zero_map(const FitRequest& request, MapForm form, int64_t d) {
  const auto n = static_cast<size_t>(d), r = static_cast<size_t>(request.rank);
  Map zero{Matrix(square(d)), {}, {}, std::vector<double>(n)};
  if (form == MapForm::kLowRank) {
    zero.up.resize(n * r);
    zero.down.resize(r * n);
  }
  return zero;
}

bool finite(const CutMoments& m) {
  auto all = [](const std::vector<double>& v) {
    return std::all_of(v.begin(), v.end(), [](double x) { return std::isfinite(x); });
  };
  return std::isfinite(m.weight) && all(m.sx) && all(m.sr) && all(m.xx) && all(m.xr);
}

/// How far maps are from the held-out tokens' y, as shares of its variance.
class Judge {
 public:
  explicit Judge(const HeldOut& rows, int64_t d)
      : rows_(rows), d_(static_cast<size_t>(d)), x_(rows.x().begin(), rows.x().end()) {
    const std::vector<float>& y = rows.y();
    std::vector<double> mean(d_);
    double weight = 0;
    for (size_t t = 0; t < rows.rows().size(); ++t) {
      const double w = rows.rows()[t].weight;
      for (size_t j = 0; j < d_; ++j) mean[j] += w * y[t * d_ + j];
      weight += w;
    }
    for (double& m : mean) m /= weight;
    for (size_t t = 0; t < rows.rows().size(); ++t) {
      double squares = 0;
      for (size_t j = 0; j < d_; ++j) squares += (y[t * d_ + j] - mean[j]) * (y[t * d_ + j] - mean[j]);
      variance_ += rows.rows()[t].weight * squares;
      if (!rows.rows()[t].massive) ordinary_variance_ += rows.rows()[t].weight * squares;
    }
  }

  struct Score {
    double error = 0, ordinary = 0;
    std::vector<double> by_context;  // parts of `error`
  };
  /// Of the map x + x B + b.
  Score score(const Matrix& B, const std::vector<double>& b) const {
    Matrix left = residual();
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_rows(), blas(d()), blas(d()), -1, x_.data(),
                blas(d()), B.data(), blas(d()), 1, left.data(), blas(d()));
    for (size_t k = 0; k < left.size(); ++k) left[k] -= b[k % d_];
    return sum(left);
  }
  Score plain() const { return sum(residual()); }

  /// Is a map better than none, as far as the contexts tell? `error` becomes that of the difference.
  bool beats(const Score& plain, const Score& map, double& standard_error) const {
    const auto n = static_cast<double>(plain.by_context.size());
    const double gain = plain.error - map.error;
    double squares = 0;
    for (size_t c = 0; c < plain.by_context.size(); ++c) {
      const double off = plain.by_context[c] - map.by_context[c] - gain / n;
      squares += off * off;
    }
    standard_error = n > 1 ? std::sqrt(squares * n / (n - 1)) : kUnknown;
    return gain > (n > 1 ? standard_error : kLeastGain * plain.error);
  }

 private:
  int64_t d() const { return static_cast<int64_t>(d_); }
  int blas_rows() const { return blas(static_cast<int64_t>(rows_.rows().size())); }
  Matrix residual() const {
    Matrix r(x_.size());
    for (size_t k = 0; k < r.size(); ++k) r[k] = rows_.y()[k] - x_[k];
    return r;
  }
  Score sum(const Matrix& left) const {
    Score s;
    s.by_context.resize(static_cast<size_t>(rows_.contexts()));
    double all = 0;
    for (size_t t = 0; t < rows_.rows().size(); ++t) {
      const HeldOut::Row& row = rows_.rows()[t];
      double squares = 0;
      for (size_t j = 0; j < d_; ++j) squares += left[t * d_ + j] * left[t * d_ + j];
      all += row.weight * squares;
      if (!row.massive) s.ordinary += row.weight * squares;
      s.by_context[row.context] += row.weight * squares;
    }
    auto share = [](double part, double variance) {
      return part == 0 ? 0 : variance > 0 ? part / variance : kUnknown;
    };
    s.error = share(all, variance_);
    s.ordinary = share(s.ordinary, ordinary_variance_);
    for (double& part : s.by_context) part = share(part, variance_);
    return s;
  }

  const HeldOut& rows_;
  size_t d_;
  Matrix x_;
  double variance_ = 0, ordinary_variance_ = 0;
};

/// The best of what was tried.
struct Choice {
  double ridge = kUnknown;  // NaN: a bias alone
  Judge::Score score;
  bool at_limit = false;
};

/// Tries ridges from the largest down: of equally good ones the most penalised stays. Where the best one
/// stands at the end of what was tried the search goes on.
Result<Choice> choose(Judge::Score bias_alone,
                      const std::function<Result<Judge::Score>(double ridge)>& try_ridge) {
  Choice best{kUnknown, std::move(bias_alone)};
  int power = kRidgeLimits[1] + 1, low = kRidgePowers[0], high = kRidgePowers[1];
  auto look = [&](int at, bool keep_equal) -> Status {
    DS_ASSIGN(Judge::Score score, try_ridge(std::pow(10.0, at)));
    const bool better =
        keep_equal ? score.error <= best.score.error : score.error < best.score.error * (1 - kAlike);
    if (!better) return ok_status();
    best = {std::pow(10.0, at), std::move(score)};
    power = at;
    return ok_status();
  };
  for (int at = high; at >= low; --at) DS_TRY(look(at, false));
  while (power == high && high < kRidgeLimits[1]) DS_TRY(look(++high, true));
  while (power == low && low > kRidgeLimits[0]) DS_TRY(look(--low, false));
  best.at_limit = power == kRidgeLimits[0] || power == kRidgeLimits[1];
  return best;
}

/// Maps of all forms for any ridge, from the sums of one part of the contexts.
class Solver {
 public:
  Solver(const FitRequest& request, const CutMoments& m) : request_(request), d_(m.d), c_(centred(m)) {}

  /// Makes full maps of many ridges cheap. kInfeasible: the system is singular.
  Status decompose() {
    q_ = c_.xx;
    DS_ASSIGN(values_, eigen(q_, d_));
    const double smallest = values_.back() * static_cast<double>(d_) * std::numeric_limits<double>::epsilon();
    auto spanned = std::count_if(values_.begin(), values_.end(), [&](double v) { return v > smallest; });
    if (spanned < d_)
      return error(
          Code::kInfeasible,
          "layer {}: the sender's hidden states span {} of {} directions, so that the system is "
          "singular; fit on more varied contexts, or leave such layers' cuts plain (--align-fallback plain)",
          request_.layer, spanned, d_);
    right_ = product(q_, c_.xr, d_, /*transpose_a=*/true);
    return ok_status();
  }

  Result<Map> map(MapForm form, double ridge) const {
    if (std::isnan(ridge)) return zero_map(request_, form, d_);
    const double lambda = penalty(ridge, c_);
    if (form == MapForm::kDiagonal) return diagonal_map(c_, lambda, d_);
    if (form == MapForm::kLowRank) return low_rank_map(c_, lambda, d_, request_.rank);
    if (q_.empty()) {
      DS_ASSIGN(Matrix B, solve(c_, lambda, c_.xr, d_));
      return Map{std::move(B), {}, {}, {}};
    }
    Matrix scaled = right_;
    const auto n = static_cast<size_t>(d_);
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j) scaled[i * n + j] /= values_[i] + lambda;
    return Map{product(q_, scaled, d_), {}, {}, {}};
  }
  std::vector<double> bias(const Matrix& B) const { return bias_of(B, c_); }

 private:
  const FitRequest& request_;
  int64_t d_;
  Centred c_;
  Matrix q_, right_;
  std::vector<double> values_;
};

std::vector<float> floats(const std::vector<double>& v) { return {v.begin(), v.end()}; }

AlignmentMap alignment_map(const FitRequest& request, MapForm form, const Map& map,
                           const std::vector<double>& bias) {
  AlignmentMap out;
  out.layer = request.layer;
  out.form = form;
  out.bias = floats(bias);
  if (form == MapForm::kFull) {
    const size_t d = bias.size();
    out.weight.resize(d * d);
    for (size_t i = 0; i < d; ++i)
      for (size_t j = 0; j < d; ++j) out.weight[j * d + i] = static_cast<float>(map.B[i * d + j]);
    return out;
  }
  out.scale = floats(map.scale);
  if (form != MapForm::kLowRank) return out;
  out.rank = request.rank;
  out.up = floats(map.up);
  out.down = floats(map.down);
  return out;
}

/// The upper one of an even number.
double median(std::vector<double> v) {
  auto middle = v.begin() + static_cast<ptrdiff_t>(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  return *middle;
}

}  // namespace

TokenWeights weigh_tokens(std::span<const double> x, std::span<const double> r, int64_t d) {
  const size_t width = static_cast<size_t>(d), rows = x.size() / width;
  std::vector<double> x_norm(rows), y_norm(rows);
  TokenWeights out{std::vector<double>(rows), std::vector<char>(rows)};
  for (size_t t = 0; t < rows; ++t) {
    double xx = 0, yy = 0;
    for (size_t k = t * width; k < (t + 1) * width; ++k) {
      xx += x[k] * x[k];
      yy += (x[k] + r[k]) * (x[k] + r[k]);
    }
    out.weight[t] = xx + yy > 0 ? 2 / (xx + yy) : 0;
    x_norm[t] = std::sqrt(xx);
    y_norm[t] = std::sqrt(yy);
  }
  if (rows == 0) return out;
  const double x_most = kMassiveNorm * median(x_norm), y_most = kMassiveNorm * median(y_norm);
  for (size_t t = 0; t < rows; ++t) {
    out.massive[t] = x_norm[t] > x_most || y_norm[t] > y_most;
    if (out.massive[t]) out.weight[t] *= kMassiveCount;
  }
  return out;
}

CutMoments::CutMoments(int64_t width)
    : d(width),
      xx(square(width)),
      xr(square(width)),
      sx(static_cast<size_t>(width)),
      sr(static_cast<size_t>(width)) {}

void CutMoments::add(std::span<const double> x, std::span<const double> r, std::span<const double> weights) {
  constexpr size_t kBlock = 512;  // rows; so that long contexts need no second copy
  const auto width = static_cast<size_t>(d);
  std::vector<double> scaled_x, scaled_r;
  for (size_t first = 0; first < weights.size(); first += kBlock) {
    const size_t rows = std::min(kBlock, weights.size() - first);
    scaled_x.resize(rows * width);
    scaled_r.resize(rows * width);
    for (size_t t = 0; t < rows; ++t) {
      const double w = weights[first + t], root = std::sqrt(w);
      for (size_t j = 0; j < width; ++j) {
        const size_t from = (first + t) * width + j, to = t * width + j;
        scaled_x[to] = root * x[from];
        scaled_r[to] = root * r[from];
        sx[j] += w * x[from];
        sr[j] += w * r[from];
      }
      weight += w;
    }
    const int n = blas(static_cast<int64_t>(rows));
    cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, blas(d), n, 1, scaled_x.data(), blas(d), 1, xx.data(),
                blas(d));
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas(d), blas(d), n, 1, scaled_x.data(), blas(d),
                scaled_r.data(), blas(d), 1, xr.data(), blas(d));
  }
  tokens += static_cast<int64_t>(weights.size());
}

CutMoments& CutMoments::operator+=(const CutMoments& o) {
  auto add_to = [](std::vector<double>& a, const std::vector<double>& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  };
  add_to(xx, o.xx);
  add_to(xr, o.xr);
  add_to(sx, o.sx);
  add_to(sr, o.sr);
  weight += o.weight;
  tokens += o.tokens;
  contexts += o.contexts;
  massive_tokens += o.massive_tokens;
  return *this;
}

void HeldOut::add(std::span<const double> x, std::span<const double> r, const TokenWeights& weights) {
  const auto width = static_cast<size_t>(d_);
  for (bool massive : {false, true}) {
    std::vector<size_t> all;
    for (size_t t = 0; t < weights.weight.size(); ++t)
      if ((weights.massive[t] != 0) == massive) all.push_back(t);
    const size_t kept = std::min(all.size(), static_cast<size_t>(most_));
    for (size_t k = 0; k < kept; ++k) {
      const size_t t = all[(2 * k + 1) * all.size() / (2 * kept)];  // in the middle of those it stands for
      const double stands_for = static_cast<double>(all.size()) / static_cast<double>(kept);
      rows_.push_back({weights.weight[t] * stands_for, massive, static_cast<size_t>(contexts_)});
      for (size_t k2 = t * width; k2 < (t + 1) * width; ++k2) {
        x_.push_back(static_cast<float>(x[k2]));
        y_.push_back(static_cast<float>(x[k2] + r[k2]));
      }
    }
  }
  tokens_ += static_cast<int64_t>(weights.weight.size());
  ++contexts_;
}

int64_t fit_scratch_bytes(int64_t d, int64_t rows) {
  // Centred sums and eigenvectors with their right side; a map and what it is made from; x and an error of
  // each held-out row.
  return 8 * (4 * d * d + 4 * d * d + 2 * rows * d);
}

Result<LayerMaps> fit_maps(const FitRequest& request, CutMoments fit, CutMoments held_out,
                           const HeldOut& rows) {
  const int64_t d = fit.d;
  if (!finite(fit) || !finite(held_out))
    return error(Code::kCorrupt,
                 "layer {}: the sums over hidden states are not finite: a model's weights are damaged",
                 request.layer);
  if (fit.tokens < kTokensPerWidth * d || rows.tokens() < 1)
    return error(Code::kInfeasible,
                 "layer {}: {} tokens to fit on and {} to choose the ridge on; hidden states of width {} "
                 "need at least {} and 1: give more contexts (about {} tokens in all)",
                 request.layer, fit.tokens, rows.tokens(), d, kTokensPerWidth * d,
                 // One context of five is held out.
                 kTokensPerWidth * d * 5 / 4 + 1);
  const Judge judge(rows, d);
  const Judge::Score plain = judge.plain();
  MapFit common;
  common.tokens = fit.tokens + held_out.tokens;
  common.contexts = fit.contexts + held_out.contexts;
  common.held_out_tokens = rows.tokens();
  common.held_out_contexts = rows.contexts();
  common.massive_tokens = fit.massive_tokens + held_out.massive_tokens;
  common.plain_error = plain.error;
  common.plain_ordinary_error = plain.ordinary;

  LayerMaps out;
  std::vector<std::pair<MapForm, MapFit>> taken;
  {
    Solver part(request, fit);
    DS_TRY(part.decompose());
    const Matrix none(square(d));
    const Judge::Score bias_alone = judge.score(none, part.bias(none));
    for (MapForm form : request.forms) {
      DS_ASSIGN(Choice best, choose(bias_alone, [&](double ridge) -> Result<Judge::Score> {
                  auto map = part.map(form, ridge);
                  if (!map.ok()) return map.status().with_context(fmt::format("layer {}", request.layer));
                  return judge.score(map->B, part.bias(map->B));
                }));
      MapFit stated = common;
      stated.ridge = best.ridge;
      stated.error = best.score.error;
      stated.ordinary_error = best.score.ordinary;
      const bool better = judge.beats(plain, best.score, stated.gain_stderr);
      if (!better && !request.control) {
        out.plain.push_back({request.layer, form, stated});
        continue;
      }
      if (best.at_limit)
        out.limits.push_back(fmt::format("layer {}, {}: the best ridge is {:.0e}, the {} that is tried",
                                         request.layer, map_form_name(form), best.ridge,
                                         best.ridge < 1 ? "smallest" : "largest"));
      taken.emplace_back(form, stated);
    }
  }
  if (taken.empty()) return out;
  fit += held_out;
  held_out = CutMoments(0);
  Solver whole(request, fit);
  for (const auto& [form, stated] : taken) {
    auto map = whole.map(form, stated.ridge);
    if (!map.ok()) return map.status().with_context(fmt::format("layer {}", request.layer));
    out.maps.push_back(alignment_map(request, form, *map, whole.bias(map->B)));
    out.maps.back().fit = stated;
  }
  return out;
}

}  // namespace ds
