#include "profiler/moments.h"

#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace ds {
namespace {

using Matrix = std::vector<double>;  // [d][d], by rows

int blas(int64_t n) { return static_cast<int>(n); }
size_t square(int64_t d) { return static_cast<size_t>(d) * static_cast<size_t>(d); }

/// a * b, or a^T * b.
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

/// Of y about its mean, summed over tokens and elements.
double variance_y(const CutMoments& m) {
  double squares = 0;
  for (size_t i = 0; i < m.sx.size(); ++i) squares += (m.sx[i] + m.sr[i]) * (m.sx[i] + m.sr[i]);
  return m.yy - squares / static_cast<double>(m.tokens);
}

/// Sums about the means.
struct Centred {
  Matrix xx, xr;
  std::vector<double> mean_x, mean_r;
  double variance_x = 0;  // mean over elements, per token
};

Centred centred(const CutMoments& m) {
  const auto d = static_cast<size_t>(m.d);
  const auto n = static_cast<double>(m.tokens);
  Centred c{m.xx, m.xr, m.sx, m.sr};
  for (size_t i = 0; i < d; ++i) {
    c.mean_x[i] /= n;
    c.mean_r[i] /= n;
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
  c.variance_x /= n * static_cast<double>(m.d);
  return c;
}

/// An affine map of row vectors: r is about x B + b.
struct Affine {
  Matrix B;
  std::vector<double> b;
};

std::vector<double> bias_of(const Matrix& B, const Centred& c) {
  const size_t d = c.mean_x.size();
  std::vector<double> b = c.mean_r;
  for (size_t i = 0; i < d; ++i)
    for (size_t j = 0; j < d; ++j) b[j] -= c.mean_x[i] * B[i * d + j];
  return b;
}

/// Mean squared distance as a share of the variance of y; 0 where there is neither.
double error_of(const Affine& map, const CutMoments& m) {
  const auto d = static_cast<size_t>(m.d);
  const double n = static_cast<double>(m.tokens), variance = variance_y(m);
  Matrix xxB(square(m.d));
  cblas_dsymm(CblasRowMajor, CblasLeft, CblasUpper, blas(m.d), blas(m.d), 1, m.xx.data(), blas(m.d),
              map.B.data(), blas(m.d), 0, xxB.data(), blas(m.d));
  double sum = m.rr;
  for (size_t k = 0; k < d * d; ++k) sum += map.B[k] * (xxB[k] - 2 * m.xr[k]);
  for (size_t j = 0; j < d; ++j) {
    double sxB = 0;
    for (size_t i = 0; i < d; ++i) sxB += m.sx[i] * map.B[i * d + j];
    sum += map.b[j] * (n * map.b[j] + 2 * sxB - 2 * m.sr[j]);
  }
  // What rounding leaves of an exact map may be below 0.
  return sum <= 0 ? 0 : variance > 0 ? sum / variance : kUnknown;
}

double plain_error(const CutMoments& m) {
  const double variance = variance_y(m);
  return m.rr <= 0 ? 0 : variance > 0 ? m.rr / variance : kUnknown;
}

/// (xx + lambda)^-1 * right.
Result<Matrix> solve(const Centred& c, double lambda, Matrix right, int64_t d) {
  Matrix a = c.xx;
  for (int64_t i = 0; i < d; ++i) a[static_cast<size_t>(i * d + i)] += lambda;
  if (LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', blas(d), blas(d), a.data(), blas(d), right.data(), blas(d)) != 0)
    return error(Code::kInfeasible, "the normal equations are singular");
  return right;
}

struct Low {
  std::vector<double> up, down, scale;  // [d][r], [r][d], [d]
  Matrix B;
};

std::vector<double> diagonal(const Centred& c, double lambda, int64_t d) {
  std::vector<double> scale;
  for (int64_t i = 0; i < d; ++i) {
    auto at = static_cast<size_t>(i * d + i);
    scale.push_back(c.xr[at] == 0 ? 0 : c.xr[at] / (c.xx[at] + lambda));
  }
  return scale;
}

/// The diagonal first; of what it leaves the best fit of that rank (reduced-rank regression).
Result<Low> low_rank(const Centred& c, double lambda, int64_t d, int64_t rank) {
  const auto n = static_cast<size_t>(d), r = static_cast<size_t>(rank);
  Low low;
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

Matrix from_diagonal(const std::vector<double>& scale) {
  const size_t d = scale.size();
  Matrix B(d * d);
  for (size_t i = 0; i < d; ++i) B[i * d + i] = scale[i];
  return B;
}

std::vector<float> floats(const std::vector<double>& v) { return {v.begin(), v.end()}; }

bool finite(const CutMoments& m) {
  auto all = [](const std::vector<double>& v) {
    return std::all_of(v.begin(), v.end(), [](double x) { return std::isfinite(x); });
  };
  return std::isfinite(m.rr) && std::isfinite(m.yy) && all(m.sx) && all(m.sr) && all(m.xx) && all(m.xr);
}

/// The ridge, in units of the variance of x, whose map is best on what it was not fitted on; of equally good
/// ones the largest.
Result<double> choose_ridge(int64_t layer, const CutMoments& fit, const CutMoments& held_out) {
  const int64_t d = fit.d;
  const auto n = static_cast<size_t>(d);
  const Centred c = centred(fit);
  Matrix q = c.xx;
  DS_ASSIGN(std::vector<double> values, eigen(q, d));
  const double smallest = values.back() * static_cast<double>(d) * std::numeric_limits<double>::epsilon();
  auto spanned = std::count_if(values.begin(), values.end(), [&](double v) { return v > smallest; });
  if (spanned < d)
    return error(Code::kInfeasible,
                 "layer {}: the sender's hidden states span {} of {} directions, so that the system is "
                 "singular; fit on "
                 "more varied contexts, or leave such layers' cuts plain (--align-fallback plain)",
                 layer, spanned, d);
  Matrix right = product(q, c.xr, d, /*transpose_a=*/true);
  std::optional<double> best;
  double least = 0;
  for (int power = 2; power >= -8; --power) {
    const double ridge = std::pow(10.0, power);
    const double lambda = ridge * c.variance_x * static_cast<double>(fit.tokens);
    Matrix scaled = right;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j) scaled[i * n + j] /= values[i] + lambda;
    Affine map{product(q, scaled, d), {}};
    map.b = bias_of(map.B, c);
    double error = error_of(map, held_out);
    if (best && !(error < least)) continue;
    best = ridge;
    least = error;
  }
  return *best;
}

}  // namespace

CutMoments::CutMoments(int64_t width)
    : d(width),
      xx(square(width)),
      xr(square(width)),
      sx(static_cast<size_t>(width)),
      sr(static_cast<size_t>(width)) {}

void CutMoments::add(std::span<const double> x, std::span<const double> r, int64_t rows) {
  cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, blas(d), blas(rows), 1, x.data(), blas(d), 1, xx.data(),
              blas(d));
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas(d), blas(d), blas(rows), 1, x.data(), blas(d),
              r.data(), blas(d), 1, xr.data(), blas(d));
  const auto width = static_cast<size_t>(d);
  for (size_t k = 0; k < static_cast<size_t>(rows) * width; ++k) {
    sx[k % width] += x[k];
    sr[k % width] += r[k];
    rr += r[k] * r[k];
    yy += (x[k] + r[k]) * (x[k] + r[k]);
  }
  tokens += rows;
}

CutMoments& CutMoments::operator+=(const CutMoments& o) {
  auto add_to = [](std::vector<double>& a, const std::vector<double>& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  };
  add_to(xx, o.xx);
  add_to(xr, o.xr);
  add_to(sx, o.sx);
  add_to(sr, o.sr);
  rr += o.rr;
  yy += o.yy;
  tokens += o.tokens;
  contexts += o.contexts;
  return *this;
}

Result<std::vector<AlignmentMap>> fit_maps(int64_t layer, int64_t rank, const CutMoments& fit,
                                           const CutMoments& held_out) {
  const int64_t d = fit.d;
  if (!finite(fit) || !finite(held_out))
    return error(Code::kCorrupt,
                 "layer {}: the sums over hidden states are not finite: a model's weights are damaged",
                 layer);
  if (fit.tokens < kTokensPerWidth * d || held_out.tokens < 1)
    return error(Code::kInfeasible,
                 "layer {}: {} tokens to fit on and {} to choose the ridge on; hidden states of width {} "
                 "need at least "
                 "{} and 1: give more contexts (about {} tokens in all)",
                 layer, fit.tokens, held_out.tokens, d, kTokensPerWidth * d,
                 // One context of five is held out.
                 kTokensPerWidth * d * 5 / 4 + 1);
  DS_ASSIGN(double ridge, choose_ridge(layer, fit, held_out));
  CutMoments all = fit;
  all += held_out;
  struct Fitted {
    Affine full, low, diagonal;
    Low factors;
    std::vector<double> scale;
  };
  auto fit_on = [&](const CutMoments& m) -> Result<Fitted> {
    const Centred c = centred(m);
    const double lambda = ridge * c.variance_x * static_cast<double>(m.tokens);
    Fitted f;
    auto full = solve(c, lambda, c.xr, d);
    if (!full.ok()) return full.status().with_context(fmt::format("layer {}", layer));
    f.full.B = std::move(*full);
    DS_ASSIGN(f.factors, low_rank(c, lambda, d, rank));
    f.low.B = f.factors.B;
    f.scale = diagonal(c, lambda, d);
    f.diagonal.B = from_diagonal(f.scale);
    for (Affine* a : {&f.full, &f.low, &f.diagonal}) a->b = bias_of(a->B, c);
    return f;
  };
  DS_ASSIGN(Fitted part, fit_on(fit));
  DS_ASSIGN(Fitted whole, fit_on(all));

  std::vector<AlignmentMap> maps(3);
  MapFit common{all.tokens, all.contexts,         held_out.tokens, held_out.contexts, ridge,
                0,          plain_error(held_out)};
  for (AlignmentMap& m : maps) {
    m.layer = layer;
    m.fit = common;
  }
  AlignmentMap &diagonal_map = maps[0], &low = maps[1], &full = maps[2];
  diagonal_map.form = MapForm::kDiagonal;
  diagonal_map.scale = floats(whole.scale);
  diagonal_map.bias = floats(whole.diagonal.b);
  diagonal_map.fit.error = error_of(part.diagonal, held_out);
  low.form = MapForm::kLowRank;
  low.rank = rank;
  low.up = floats(whole.factors.up);
  low.down = floats(whole.factors.down);
  low.scale = floats(whole.factors.scale);
  low.bias = floats(whole.low.b);
  low.fit.error = error_of(part.low, held_out);
  full.form = MapForm::kFull;
  full.weight.resize(square(d));
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < d; ++j)
      full.weight[static_cast<size_t>(j * d + i)] =
          static_cast<float>(whole.full.B[static_cast<size_t>(i * d + j)]);
  full.bias = floats(whole.full.b);
  full.fit.error = error_of(part.full, held_out);
  return maps;
}

}  // namespace ds
