#include "compiler/select/variants.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ds {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

int64_t geometric_mean(int64_t low, int64_t high) {
  auto mean = static_cast<int64_t>(
      std::llround(std::sqrt(static_cast<double>(low)) * std::sqrt(static_cast<double>(high))));
  return std::clamp(mean, std::min(low + 1, high), high);
}

/// Rates first to last of the grid that share a tiling.
struct Segment {
  size_t first = 0, last = 0;
  size_t tiling = 0;
};
using Row = std::vector<Segment>;

/// Lengths first to last of the grid that share a row.
struct Band {
  size_t first = 0, last = 0;
  Row row;
};

class Placement {
 public:
  /// `worth`: kWorthAVariant, or more.
  Placement(Chooser& chooser, const Grid& grid, bool waiting, double worth)
      : chooser_(chooser), grid_(grid), waiting_(waiting), worth_(worth) {}

  Result<std::vector<PlacedVariant>> run() {
    std::vector<Band> bands;
    for (size_t n = 0; n < grid_.tokens.size(); ++n) {
      if (!bands.empty()) {
        DS_ASSIGN(bool serves, serves_too(bands.back().row, n));
        if (serves) {
          bands.back().last = n;
          continue;
        }
      }
      DS_ASSIGN(Row row, make_row(n));
      bands.push_back({n, n, std::move(row)});
    }
    std::vector<int64_t> edges = {1};
    for (size_t b = 0; b + 1 < bands.size(); ++b) {
      DS_ASSIGN(int64_t edge, length_edge(bands[b], bands[b + 1]));
      edges.push_back(edge);
    }
    edges.push_back(kNoLimit);
    std::vector<PlacedVariant> all;
    for (size_t b = 0; b < bands.size(); ++b) DS_TRY(place(bands[b], edges[b], edges[b + 1], all));
    return all;
  }

 private:
  Point point(int64_t tokens, int64_t rate) const { return {tokens, grid_.suffix, rate, waiting_}; }
  Point at(size_t n, size_t r) const { return point(grid_.tokens[n], grid_.rates[r]); }

  /// How much worse than the best a tiling is at a point, as a share; kNever: it breaks the objective.
  Result<double> regret(size_t tiling, const Point& p) {
    DS_ASSIGN(size_t best, chooser_.best(p));
    if (best == tiling) return 0.0;
    DS_ASSIGN(Predicted mine, chooser_.predict(tiling, p));
    DS_ASSIGN(Predicted theirs, chooser_.predict(best, p));
    if (!chooser_.keeps_slo(tiling, mine)) return kNever;
    return chooser_.excess(tiling, mine, best, theirs, p);
  }

  Result<bool> serves_too(const Row& row, size_t n) {
    for (const Segment& s : row) {
      for (size_t r = s.first; r <= s.last; ++r) {
        DS_ASSIGN(double share, regret(s.tiling, at(n, r)));
        if (share > worth_) return false;
      }
    }
    return true;
  }

  /// As few segments as come from going up and taking in the next rate while one tiling serves all.
  Result<Row> make_row(size_t n) {
    Row row;
    for (size_t r = 0; r < grid_.rates.size(); ++r) {
      DS_ASSIGN(size_t best, chooser_.best(at(n, r)));
      if (!row.empty()) {
        DS_ASSIGN(bool joined, join(row.back(), n, r, best));
        if (joined) continue;
      }
      row.push_back({r, r, best});
    }
    return row;
  }

  Result<bool> join(Segment& s, size_t n, size_t r, size_t best) {
    for (size_t tiling : {s.tiling, best}) {
      bool serves = true;
      for (size_t k = s.first; serves && k <= r; ++k) {
        DS_ASSIGN(double share, regret(tiling, at(n, k)));
        serves = share <= worth_;
      }
      if (!serves) continue;
      s.tiling = tiling;
      s.last = r;
      return true;
    }
    return false;
  }

  /// Is `low` no worse than `high` at this point?
  Result<bool> prefers_low(size_t low, size_t high, const Point& p) {
    DS_ASSIGN(Predicted a, chooser_.predict(low, p));
    DS_ASSIGN(Predicted b, chooser_.predict(high, p));
    bool keeps_a = chooser_.keeps_slo(low, a), keeps_b = chooser_.keeps_slo(high, b);
    if (keeps_a != keeps_b) return keeps_a;
    return chooser_.excess(low, a, high, b, p) <= 0;
  }

  /// Halves the range (its ratio) until it is about a hundredth of a decade.
  template <typename PrefersLow>
  static Result<int64_t> bisect(int64_t low, int64_t high, PrefersLow prefers_low) {
    for (int i = 0; i < 7 && high - low > 1; ++i) {
      int64_t middle = geometric_mean(low, high);
      if (middle == high) break;
      DS_ASSIGN(bool keep, prefers_low(middle));
      (keep ? low : high) = middle;
    }
    return high;
  }

  Result<int64_t> length_edge(const Band& below, const Band& above) {
    int64_t low = grid_.tokens[below.last], high = grid_.tokens[above.first];
    return bisect(low, high, [&](int64_t tokens) -> Result<bool> {
      // Each rate has a vote.
      int votes = 0;
      for (size_t r = 0; r < grid_.rates.size(); ++r) {
        DS_ASSIGN(bool keep, prefers_low(tiling_at(below.row, r), tiling_at(above.row, r),
                                         point(tokens, grid_.rates[r])));
        votes += keep ? 1 : -1;
      }
      return votes >= 0;
    });
  }
  static size_t tiling_at(const Row& row, size_t r) {
    return std::find_if(row.begin(), row.end(), [&](const Segment& s) { return r <= s.last; })->tiling;
  }

  Status place(const Band& band, int64_t tokens_min, int64_t tokens_max, std::vector<PlacedVariant>& all) {
    size_t n = (band.first + band.last) / 2;
    int64_t rate_min = 0;
    for (size_t i = 0; i < band.row.size(); ++i) {
      const Segment& s = band.row[i];
      PlacedVariant v;
      v.tiling = s.tiling;
      v.tuned = at(n, (s.first + s.last) / 2);
      v.tokens_min = tokens_min;
      v.tokens_max = tokens_max;
      v.rate_min = rate_min;
      if (i + 1 < band.row.size()) {
        size_t next = band.row[i + 1].tiling;
        DS_ASSIGN(v.rate_max, bisect(grid_.rates[s.last], grid_.rates[s.last + 1], [&](int64_t rate) {
                    return prefers_low(s.tiling, next, point(grid_.tokens[n], rate));
                  }));
      }
      rate_min = v.rate_max;
      std::vector<Point> seen;
      for (size_t k = band.first; k <= band.last; ++k)
        for (size_t r = s.first; r <= s.last; ++r) seen.push_back(at(k, r));
      if (v.rate_min > 0) seen.push_back(point(v.tuned.tokens, v.rate_min));
      if (v.rate_max != kNoLimit) seen.push_back(point(v.tuned.tokens, v.rate_max - 1));
      if (tokens_min > 1) seen.push_back(point(tokens_min, v.tuned.rate));
      if (tokens_max != kNoLimit) seen.push_back(point(tokens_max - 1, v.tuned.rate));
      for (const Point& p : seen) {
        auto share = regret(v.tiling, p);
        // Between grid points an objective may be out of reach; then there is no best to compare with.
        if (!share.ok() && share.status().code() == Code::kInfeasible) continue;
        DS_TRY(share.status());
        if (*share != kNever) v.regret = std::max(v.regret, *share);
      }
      all.push_back(v);
    }
    return ok_status();
  }

  Chooser& chooser_;
  const Grid& grid_;
  const bool waiting_;
  const double worth_;
};

bool same_ranges(const PlacedVariant& a, const PlacedVariant& b) {
  return a.tiling == b.tiling && a.tokens_min == b.tokens_min && a.tokens_max == b.tokens_max &&
         a.rate_min == b.rate_min && a.rate_max == b.rate_max;
}

/// Adds rates between neighbours where what is placed leaves too much to be wished for.
Result<std::vector<PlacedVariant>> place(Chooser& chooser, Grid grid, bool waiting, double worth) {
  for (int round = 0;; ++round) {
    DS_ASSIGN(std::vector<PlacedVariant> placed, Placement(chooser, grid, waiting, worth).run());
    std::vector<int64_t> rates = grid.rates;
    for (const PlacedVariant& v : placed) {
      if (round == 2 || v.regret <= worth / kWorthAVariant * kTolerated) continue;
      for (int64_t edge : {v.rate_min, v.rate_max}) {
        auto above = std::lower_bound(grid.rates.begin(), grid.rates.end(), edge);
        if (above == grid.rates.begin() || above == grid.rates.end()) continue;
        rates.push_back(geometric_mean(*(above - 1), *above));
      }
    }
    std::sort(rates.begin(), rates.end());
    rates.erase(std::unique(rates.begin(), rates.end()), rates.end());
    if (rates == grid.rates) return placed;
    grid.rates = std::move(rates);
  }
}

Result<std::vector<PlacedVariant>> place_all(Chooser& chooser, const Grid& grid, double worth) {
  DS_ASSIGN(std::vector<PlacedVariant> all, place(chooser, grid, false, worth));
  if (!chooser.counts_busy({.waiting = true})) return all;
  DS_ASSIGN(std::vector<PlacedVariant> loaded, place(chooser, grid, true, worth));
  for (PlacedVariant& v : all) {
    auto same = std::find_if(loaded.begin(), loaded.end(), [&](const auto& l) { return same_ranges(v, l); });
    if (same == loaded.end()) {
      v.load_max = 1;
    } else {  // one for every load
      v.regret = std::max(v.regret, same->regret);
      loaded.erase(same);
    }
  }
  for (PlacedVariant& v : loaded) v.load_min = 1;
  all.insert(all.end(), loaded.begin(), loaded.end());
  return all;
}

}  // namespace

Result<std::vector<PlacedVariant>> place_variants(Chooser& chooser, const Grid& grid, size_t most) {
  for (double worth = kWorthAVariant;; worth *= 2) {
    DS_ASSIGN(std::vector<PlacedVariant> all, place_all(chooser, grid, worth));
    if (all.size() <= most || worth > 1000) return all;
  }
}

}  // namespace ds
