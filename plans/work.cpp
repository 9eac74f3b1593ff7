#include "plans/work.h"

namespace ds {

LayerWork layer_work(const Shape& s, const OpRows& r) {
  auto d = static_cast<double>(s.d_model), ff = static_cast<double>(s.ff);
  auto q_width = static_cast<double>(s.heads * s.head_dim), kv_width = static_cast<double>(s.kv_row());
  auto rows = static_cast<double>(r.rows), queries = static_cast<double>(r.queries);
  auto end = static_cast<double>(r.first + r.rows);
  double pairs = queries * end - queries * (queries - 1) / 2;
  return {.matmul = 2 * rows * d * kv_width + queries * (4 * d * q_width + 6 * d * ff),
          .attention = 4 * q_width * pairs};
}

double map_flops(MapForm form, int64_t d, int64_t rank) {
  auto width = static_cast<double>(d), r = static_cast<double>(rank);
  switch (form) {
    case MapForm::kNone:
      break;
    case MapForm::kDiagonal:
      return 2 * width;
    case MapForm::kLowRank:
      return 4 * width * r + 2 * width;
    case MapForm::kFull:
      return 2 * width * width;
  }
  return 0;
}

}  // namespace ds
