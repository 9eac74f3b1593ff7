#include "compiler/select/variants.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <tuple>

namespace ds {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

/// Drawings of a way that recompute as much but for this share of all layers and tokens may stand for one
/// another.
constexpr double kSameShare = 1.0 / 16;

int64_t geometric_mean(int64_t low, int64_t high) {
  auto mean = static_cast<int64_t>(
      std::llround(std::sqrt(static_cast<double>(low)) * std::sqrt(static_cast<double>(high))));
  return std::clamp(mean, std::min(low + 1, high), high);
}

/// How many loads are told apart: none waits, and any other number.
constexpr size_t kLoads = 2;
using Tilings = std::array<size_t, kLoads>;  // by load

/// Rates first to last of the grid that share a tiling for each load.
struct Segment {
  size_t first = 0, last = 0;
  Tilings tiling{};
};
using Row = std::vector<Segment>;

/// Lengths first to last of the grid that share a row.
struct Band {
  size_t first = 0, last = 0;
  Row row;
};

class Placement {
 public:
  /// `loads`: 1 where a waiting request never changes what is minimised, else kLoads. Both loads share their
  /// ranges, so that one variant can do for both. `worth`: kWorthAVariant, or more.
  Placement(Chooser& chooser, const Grid& grid, size_t loads, double worth)
      : chooser_(chooser), grid_(grid), loads_(loads), worth_(worth) {}

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
  Point point(int64_t tokens, int64_t rate, size_t load) const {
    return {tokens, grid_.suffix, rate, load > 0};
  }
  Point at(size_t n, size_t r, size_t load) const { return point(grid_.tokens[n], grid_.rates[r], load); }

  /// How much worse than the best a tiling is at a point, as a share; kNever: it breaks the objective.
  Result<double> regret(size_t tiling, const Point& p) {
    DS_ASSIGN(size_t best, chooser_.best(p));
    if (best == tiling) return 0.0;
    DS_ASSIGN(Predicted mine, chooser_.predict(tiling, p));
    DS_ASSIGN(Predicted theirs, chooser_.predict(best, p));
    if (!chooser_.keeps_slo(tiling, mine)) return kNever;
    return chooser_.excess(tiling, mine, best, theirs, p);
  }

  /// Is it good enough at rates first to last of a length, for this load?
  Result<bool> serves(size_t tiling, size_t n, size_t first, size_t last, size_t load) {
    for (size_t r = first; r <= last; ++r) {
      DS_ASSIGN(double share, regret(tiling, at(n, r, load)));
      if (share > worth_) return false;
    }
    return true;
  }

  Result<bool> serves_too(const Row& row, size_t n) {
    for (const Segment& s : row) {
      for (size_t load = 0; load < loads_; ++load) {
        DS_ASSIGN(bool good, serves(s.tiling[load], n, s.first, s.last, load));
        if (!good) return false;
      }
    }
    return true;
  }

  /// As few segments as come from going up and taking in the next rate while one tiling serves all.
  Result<Row> make_row(size_t n) {
    Row row;
    for (size_t r = 0; r < grid_.rates.size(); ++r) {
      Tilings best{};
      for (size_t load = 0; load < loads_; ++load) {
        DS_ASSIGN(best[load], chooser_.best(at(n, r, load)));
      }
      if (!row.empty()) {
        Segment joined = row.back();
        joined.last = r;
        DS_ASSIGN(bool fits, fit(joined, n, best));
        if (fits) {
          row.back() = joined;
          continue;
        }
      }
      row.push_back({r, r, best});
      DS_TRY(fit(row.back(), n, best));
    }
    return row;
  }

  /// Gives a segment tilings that serve all of it, of those that it has and the `best` of its last rate: one
  /// for all loads if there is such a one.
  Result<bool> fit(Segment& s, size_t n, const Tilings& best) {
    std::vector<size_t> candidates;
    for (size_t load = 0; load < loads_; ++load) candidates.push_back(s.tiling[load]);
    for (size_t load = 0; load < loads_; ++load) candidates.push_back(best[load]);
    Tilings found{};
    std::array<bool, kLoads> any{};
    for (size_t tiling : candidates) {
      bool all = true;
      for (size_t load = 0; load < loads_; ++load) {
        DS_ASSIGN(bool good, serves(tiling, n, s.first, s.last, load));
        all = all && good;
        if (!good || any[load]) continue;
        found[load] = tiling;
        any[load] = true;
      }
      if (!all) continue;
      s.tiling.fill(tiling);
      return true;
    }
    for (size_t load = 0; load < loads_; ++load)
      if (!any[load]) return false;
    s.tiling = found;
    return true;
  }

  /// Is `low` no worse than `high` at this point? Where nothing waits, unless they are the same there.
  Result<bool> prefers_low(const Tilings& low, const Tilings& high, int64_t tokens, int64_t rate) {
    const size_t load = low[0] != high[0] ? 0 : loads_ - 1;
    const Point p = point(tokens, rate, load);
    DS_ASSIGN(Predicted a, chooser_.predict(low[load], p));
    DS_ASSIGN(Predicted b, chooser_.predict(high[load], p));
    bool keeps_a = chooser_.keeps_slo(low[load], a), keeps_b = chooser_.keeps_slo(high[load], b);
    if (keeps_a != keeps_b) return keeps_a;
    return chooser_.excess(low[load], a, high[load], b, p) <= 0;
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
        DS_ASSIGN(bool keep,
                  prefers_low(tilings_at(below.row, r), tilings_at(above.row, r), tokens, grid_.rates[r]));
        votes += keep ? 1 : -1;
      }
      return votes >= 0;
    });
  }
  static const Tilings& tilings_at(const Row& row, size_t r) {
    return std::find_if(row.begin(), row.end(), [&](const Segment& s) { return r <= s.last; })->tiling;
  }

  /// Of all layers and tokens, what is recomputed.
  double recomputed_share(const Tiling& t) const {
    double cells = 0;
    int32_t top = 0;
    for (const Tile& tile : t.tiles) {
      top = std::max(top, tile.last_layer);
      if (tile.mode == Mode::kRecompute)
        cells += static_cast<double>(tile.last_layer - tile.first_layer + 1) *
                 (tile.last_chunk - tile.first_chunk + 1);
    }
    return cells / (static_cast<double>(top + 1) * t.chunks);
  }

  /// Each part of a context is an operation in each layer. Of the drawings of the same way that recompute
  /// about as much, the one in the fewest parts that is hardly slower where a segment is looked at, for loads
  /// first to last.
  Result<size_t> in_fewer_parts(size_t tiling, const Band& band, const Segment& s, size_t first,
                                size_t last) {
    const std::vector<Tiling>& all = chooser_.tilings();
    const Tiling& t = all[tiling];
    const double share = recomputed_share(t);
    std::vector<std::tuple<int32_t, double, size_t>> smaller;
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].chunks >= t.chunks || !(all[i].way == t.way)) continue;
      if (double apart = std::abs(recomputed_share(all[i]) - share); apart <= kSameShare)
        smaller.emplace_back(all[i].chunks, apart, i);
    }
    std::sort(smaller.begin(), smaller.end());
    auto hardly_slower = [&](size_t other) -> Result<bool> {
      for (size_t load = first; load <= last; ++load) {
        for (size_t n = band.first; n <= band.last; ++n) {
          for (size_t r = s.first; r <= s.last; ++r) {
            const Point p = at(n, r, load);
            DS_ASSIGN(Predicted theirs, chooser_.predict(other, p));
            DS_ASSIGN(Predicted mine, chooser_.predict(tiling, p));
            if (!chooser_.keeps_slo(other, theirs)) return false;
            if (chooser_.excess(other, theirs, tiling, mine, p) > kWorthAVariant) return false;
            // Also where the objective is not time.
            if (static_cast<double>(theirs.ttft_ns) >
                static_cast<double>(mine.ttft_ns) * (1 + kWorthAVariant))
              return false;
          }
        }
      }
      return true;
    };
    for (const auto& [chunks, apart, i] : smaller) {
      DS_ASSIGN(bool good, hardly_slower(i));
      if (good) return i;
    }
    return tiling;
  }

  /// The worst regret of a tiling over what was looked at of its ranges.
  Result<double> worst(const PlacedVariant& v, const Band& band, const Segment& s, size_t load) {
    std::vector<Point> seen;
    for (size_t k = band.first; k <= band.last; ++k)
      for (size_t r = s.first; r <= s.last; ++r) seen.push_back(at(k, r, load));
    if (v.rate_min > 0) seen.push_back(point(v.tuned.tokens, v.rate_min, load));
    if (v.rate_max != kNoLimit) seen.push_back(point(v.tuned.tokens, v.rate_max - 1, load));
    if (v.tokens_min > 1) seen.push_back(point(v.tokens_min, v.tuned.rate, load));
    if (v.tokens_max != kNoLimit) seen.push_back(point(v.tokens_max - 1, v.tuned.rate, load));
    double most = 0;
    for (const Point& p : seen) {
      auto share = regret(v.tiling, p);
      // Between grid points an objective may be out of reach; then there is no best to compare with.
      if (!share.ok() && share.status().code() == Code::kInfeasible) continue;
      DS_TRY(share.status());
      if (*share != kNever) most = std::max(most, *share);
    }
    return most;
  }

  Status place(const Band& band, int64_t tokens_min, int64_t tokens_max, std::vector<PlacedVariant>& all) {
    size_t n = (band.first + band.last) / 2;
    int64_t rate_min = 0;
    for (size_t i = 0; i < band.row.size(); ++i) {
      const Segment& s = band.row[i];
      PlacedVariant v;
      v.tokens_min = tokens_min;
      v.tokens_max = tokens_max;
      v.rate_min = rate_min;
      if (i + 1 < band.row.size()) {
        const Tilings& next = band.row[i + 1].tiling;
        DS_ASSIGN(v.rate_max, bisect(grid_.rates[s.last], grid_.rates[s.last + 1], [&](int64_t rate) {
                    return prefers_low(s.tiling, next, grid_.tokens[n], rate);
                  }));
      }
      rate_min = v.rate_max;
      Tilings tiling{};
      const bool shared = s.tiling[0] == s.tiling[loads_ - 1];
      for (size_t load = 0; load < loads_; ++load) {
        const size_t first = shared ? 0 : load, last = shared ? loads_ - 1 : load;
        DS_ASSIGN(tiling[load], in_fewer_parts(s.tiling[load], band, s, first, last));
      }
      const bool apart = tiling[0] != tiling[loads_ - 1];
      for (size_t load = 0; load < loads_; ++load) {
        if (load == 0 || apart) {
          v.tiling = tiling[load];
          v.tuned = at(n, (s.first + s.last) / 2, load);
          v.regret = 0;
          if (apart) (load == 0 ? v.load_max : v.load_min) = 1;
          if (load > 0) v.load_max = kNoLimit;
          all.push_back(v);
        }
        DS_ASSIGN(double share, worst(all.back(), band, s, load));
        all.back().regret = std::max(all.back().regret, share);
      }
    }
    return ok_status();
  }

  Chooser& chooser_;
  const Grid& grid_;
  const size_t loads_;
  const double worth_;
};

/// Adds rates between neighbours where what is placed leaves too much to be wished for.
Result<std::vector<PlacedVariant>> place(Chooser& chooser, Grid grid, double worth) {
  const size_t loads = chooser.counts_busy({.waiting = true}) ? kLoads : 1;
  for (int round = 0;; ++round) {
    DS_ASSIGN(std::vector<PlacedVariant> placed, Placement(chooser, grid, loads, worth).run());
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

}  // namespace

Result<std::vector<PlacedVariant>> place_variants(Chooser& chooser, const Grid& grid, size_t most) {
  for (double worth = kWorthAVariant;; worth *= worth < 1 ? 1.2 : 2) {
    DS_ASSIGN(std::vector<PlacedVariant> all, place(chooser, grid, worth));
    if (all.size() <= most || worth > 1000) return all;
  }
}

}  // namespace ds
