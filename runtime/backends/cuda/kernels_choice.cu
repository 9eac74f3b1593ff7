// The token that logits choose, as ds::choose() does, without sorting them.
//
// Sampling looks for keys (the bits of the logits, in their order) by the sum of the weights at and above
// them, four bits at a time. Every thread sums into bins of its own, and what the threads have is added in an
// order that does not change: the same logits always choose the same token.
#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/cuda/vectors_internal.h"

namespace ds::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kDigit = 4, kBins = 1 << kDigit;
static_assert(kBins == kWarps, "a warp adds up each bin");
constexpr size_t kBinBytes = sizeof(double) * kBins * kThreads;

/// Ordered as the numbers are; both zeros are one.
DS_DEVICE uint32_t key_of(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
DS_DEVICE float number_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/// exp((logit - best) / temperature); the power of two is split off, so that the rest is exact to f32.
struct Weights {
  double best, scale;
  DS_DEVICE double operator()(float logit) const {
    const double power = (static_cast<double>(logit) - best) * scale;
    if (!(power < 0)) return 1;  // the best itself, infinite ones too
    if (power < -100) return 0;
    const int whole = static_cast<int>(power);
    const float part = exp2f(static_cast<float>(power - whole));
    return static_cast<double>(part) *
           static_cast<double>(__uint_as_float(static_cast<uint32_t>(127 + whole) << 23));
  }
};

/// Calls f(logit, id) for this thread's share of the logits, ids ascending.
template <typename F>
DS_DEVICE void for_logits(const float* logits, int vocab, F f) {
  int done = 0;
  if ((reinterpret_cast<uintptr_t>(logits) & 15) == 0) {
    const int fours = vocab / 4;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < fours; i += kThreads) {
      const float4 four = reinterpret_cast<const float4*>(logits)[i];
      f(four.x, 4 * i);
      f(four.y, 4 * i + 1);
      f(four.z, 4 * i + 2);
      f(four.w, 4 * i + 3);
    }
    done = fours * 4;
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < vocab; i += kThreads) f(logits[i], i);
}

DS_DEVICE double warp_sum(double v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

/// What the bins of all threads hold together, by bin, to all threads, until the next call. `bins` is
/// [kBins][kThreads].
DS_DEVICE void add_up(const double* bins, double (&sums)[kBins]) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  __syncthreads();
  double sum = 0;
  for (int i = lane; i < kThreads; i += 32) sum += bins[warp * kThreads + i];
  sum = warp_sum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
}

DS_DEVICE int bits_of(uint32_t v) { return v == 0 ? 0 : 32 - __clz(static_cast<int>(v)); }

/// Finds, of things with a number up to `most` and a weight each, the number at which the sum of the weights,
/// added up from the largest number down, first satisfies `reached`; and in `before` the sum of those above
/// it. Where rounding lets none satisfy it: the last that has any weight. `each(add)` calls add(number,
/// weight) for this thread's things.
template <typename Each, typename Reached>
DS_DEVICE uint32_t search(double* bins, double (&sums)[kBins], uint32_t most, Each each, Reached reached,
                          double& before) {
  uint32_t found = 0;
  before = 0;
  const int digits = (bits_of(most) + kDigit - 1) / kDigit;
  for (int shift = (digits - 1) * kDigit; shift >= 0; shift -= kDigit) {
    for (int i = 0; i < kBins; ++i) bins[i * kThreads + threadIdx.x] = 0;
    each([&](uint32_t number, auto weight) {
      if (number >> shift >> kDigit == found >> shift >> kDigit)
        bins[(number >> shift & (kBins - 1)) * kThreads + threadIdx.x] += weight();
    });
    add_up(bins, sums);
    int digit = 0;
    double above = before, last = before;
    bool done = false;
    for (int i = kBins - 1; i >= 0 && !done; --i) {
      if (sums[i] == 0) continue;
      digit = i;
      last = above;
      above += sums[i];
      done = reached(above);
    }
    before = last;
    found |= static_cast<uint32_t>(digit) << shift;
  }
  return found;
}

/// Of logits; ids ascend in the calls of one thread.
struct Best {
  float logit;
  int id;
  DS_DEVICE void add(float l, int i) {
    if (l > logit || (l == logit && i < id)) logit = l, id = i;
  }
};

/// The largest, of equal ones the first; numbers that are none count only where the first of all is one, as
/// with std::max_element.
DS_DEVICE Best best_of(const float* logits, int vocab, Best (&bests)[kWarps]) {
  Best best{-INFINITY, INT32_MAX};
  for_logits(logits, vocab, [&](float logit, int id) { best.add(logit, id); });
  for (int offset = 16; offset > 0; offset /= 2) {
    const float logit = __shfl_xor_sync(0xffffffffu, best.logit, offset);
    const int id = __shfl_xor_sync(0xffffffffu, best.id, offset);
    best.add(logit, id);
  }
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) best.add(bests[i].logit, bests[i].id);
  if (best.id == INT32_MAX || logits[0] != logits[0]) best.id = 0;
  return best;
}

DS_KERNEL DS_THREADS(kThreads)
    choose(const float* logits, int vocab, const Choice* choice_at, int32_t* next) {
  DS_DYNAMIC_SHARED(shared);
  DS_SHARED double sums[kBins];
  DS_SHARED Best bests[kWarps];
  auto* bins = reinterpret_cast<double*>(shared);
  const Choice choice = *choice_at;
  const Best best = best_of(logits, vocab, bests);
  if (choice.temperature <= 0) {
    if (threadIdx.x == 0) *next = best.id;
    return;
  }
  const Weights weight{best.logit, 1.4426950408889634 / choice.temperature};
  // What weighs less than 2^-60 of the best is left out, or than min_p: numbers of keys count from there.
  const double weighs = choice.min_p > 0 ? fmax(log2(choice.min_p), -60.0) : -60;
  uint32_t lowest = key_of(static_cast<float>(best.logit + weighs / weight.scale));
  uint32_t most = key_of(best.logit) - lowest;
  auto each_key = [&](auto add) {
    for_logits(logits, vocab, [&](float logit, int) {
      const uint32_t key = key_of(logit);
      if (logit == logit && key >= lowest) add(key - lowest, [&] { return weight(logit); });
    });
  };
  if (choice.top_k > 0) {
    double above;
    auto each = [&](auto add) { each_key([&](uint32_t number, auto) { add(number, [] { return 1.0; }); }); };
    const uint32_t number = search(
        bins, sums, most, each, [&](double count) { return count >= choice.top_k; }, above);
    lowest += number;
    most -= number;
  }

  double total = 0;
  each_key([&](uint32_t, auto weigh) { total += weigh(); });
  for (int i = 0; i < kBins; ++i) bins[i * kThreads + threadIdx.x] = i == 0 ? total : 0;
  add_up(bins, sums);
  total = sums[0];

  // How much the most probable tokens weigh that are kept.
  double kept = total;
  const double asked = choice.top_p * total;
  if (choice.top_p < 1) {
    double above;
    const uint32_t key = search(
        bins, sums, most, each_key, [&](double sum) { return sum >= asked; }, above);
    const double one = weight(number_of(key + lowest));
    double equal = ceil((asked - above) / one * (1 - 1e-12));  // of those with this key
    kept = above + (equal < 1 ? 1 : equal) * one;
    kept = kept < total ? kept : total;
  }

  // The token at which the sum first exceeds `at`: its key, then which of those with this key.
  const double at = choice.at * kept;
  double above;
  const uint32_t key = lowest + search(
                                    bins, sums, most, each_key, [&](double sum) { return sum > at; }, above);
  const double rank = floor((at - above) / weight(number_of(key)));
  const auto last = static_cast<uint32_t>(vocab - 1);
  auto each_id = [&](auto add) {  // from the largest number down: ids ascending
    for_logits(logits, vocab, [&](float logit, int id) {
      if (logit == logit && key_of(logit) == key) add(last - static_cast<uint32_t>(id), [] { return 1.0; });
    });
  };
  const uint32_t number = search(
      bins, sums, last, each_id, [&](double sum) { return sum > rank; }, above);
  if (threadIdx.x == 0) *next = total > 0 ? static_cast<int32_t>(last - number) : best.id;
}

}  // namespace

cudaError_t choose_token(cudaStream_t stream, const float* logits, int64_t vocab, const Choice* choice,
                         int32_t* next) {
  return launch(choose, dim3(1), dim3(kThreads), kBinBytes, stream, logits, static_cast<int>(vocab), choice,
                next);
}

}  // namespace ds::cuda
