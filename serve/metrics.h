// What the server counts and measures, in Prometheus' text format.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "serve/answer_summary.h"
#include "serve/loaded_fleet.h"

namespace ds {

class Metrics {
 public:
  explicit Metrics(const LoadedFleet& fleet);
  ~Metrics();

  /// An answer that has ended well.
  void answered(const ServedModel& model, const AnswerSummary& summary, const EngineAnswer& answer);
  /// `outcome`: "ok", "cancelled", "failed" or "refused".
  void request(std::string_view model, std::string_view outcome);
  void http(std::string_view path, int status);
  void objective_missed(std::string_view objective);
  /// Everything, with the engine's figures of now.
  std::string text();

 private:
  struct Families;
  const LoadedFleet& fleet_;
  std::unique_ptr<Families> families_;
};

}  // namespace ds
