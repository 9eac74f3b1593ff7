// A machine, a profile and maps, and what policies draw of them.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "compiler/compile.h"
#include "compiler/policy/policy.h"

namespace ds::testing {

inline const Shape kShape{"llama", 12, 512, 1408, 8, 2, 64, 1000};

/// A machine whose layers take 1 us per row, whatever the position, and 100 us per call.
inline MachineModel machine() {
  MachineModel m = MachineModel::stand_in(DType::kBF16);
  m.link_rtt_ns = 0;
  for (int64_t rows = 1; rows <= 65536; rows *= 2) {
    m.layer_points.push_back({rows, rows, 0, 100'000 + 1000 * rows});
    m.layer_points.push_back({rows, 0, 0, 20'000 + 200 * rows});
  }
  return m;
}

inline Quality profile() {
  Quality q;
  q.layers = 12;
  q.receiver_score = 99;
  q.full_reuse_score = 60;
  auto add = [&](Way way, double score) {
    WayScore w;
    w.way = std::move(way);
    w.items = w.contexts = 50;
    w.score = {score, 1};
    w.loss = {q.receiver_score - score, 1};
    q.ways.push_back(std::move(w));
  };
  add(Way::full_reuse(), 60);
  add(Way::group({3, 7}), 97);
  add(Way::group({4, 5}), 80);
  add(Way::group({2, 8}), 99.5);
  return q;
}

inline PolicyInput input(const Quality& quality, std::vector<int32_t> chunks) {
  PolicyInput in;
  in.layers = 12;
  in.quality = &quality;
  in.chunks = std::move(chunks);
  return in;
}

inline std::vector<Tiling> draw(std::string_view policy, const PolicyInput& in) {
  auto found = find_policy(policy);
  EXPECT_TRUE(found.ok());
  auto tilings = (*found)->draw(in);
  EXPECT_TRUE(tilings.ok()) << tilings.status().message();
  return *tilings;
}

/// Maps of width 512 that are there for some layers and forms; their numbers are never looked at here.
inline MapSet some_maps(const std::vector<std::pair<int64_t, MapForm>>& there, int64_t rank = 16) {
  MapSet maps;
  maps.layers = 12;
  maps.d_model = kShape.d_model;
  for (auto [layer, form] : there) {
    AlignmentMap m;
    m.layer = layer;
    m.form = form;
    m.rank = form == MapForm::kLowRank ? rank : 0;
    maps.maps.push_back(std::move(m));
  }
  return maps;
}

inline void score(Quality& q, const Way& way, double loss, int64_t contexts = 50) {
  WayScore w;
  w.way = way;
  w.items = w.contexts = contexts;
  w.score = {q.receiver_score - loss, 1};
  w.loss = {loss, 1};
  q.ways.push_back(std::move(w));
}

inline PolicyInput aligned_input(const Quality& q, const MapSet& maps) {
  PolicyInput in = input(q, {1, 2});
  in.maps = &maps;
  in.forms = {MapForm::kNone, MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull};
  in.map_rank = 16;
  return in;
}

}  // namespace ds::testing
