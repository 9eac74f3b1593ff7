// machine.json as ds-calibrate writes it (schema: compiler/inputs/schemas.md), and a measurement that was
// interrupted.
#pragma once

#include <string>

#include "runtime/core/calibrate.h"

namespace ds {

/// What was measured, and on what.
struct CalibrationSubject {
  std::string name;  // for people
  std::string backend, description;
  std::string cpu, kernel;  // of the machine, for people
  int threads = 0;          // 0: as many as there are cores
  Shape shape;
  DType dtype = DType::kBF16;
  int64_t link_rtt_ns = 0;
  std::string options;  // canonical text of what else decides the grid
};

/// The whole file, one point per line. `calibration.machine` must be there.
std::string machine_json(const CalibrationSubject& subject, const Calibration& calibration);

/// Of a calibration at any stage; `subject` is in it as a hash.
std::string partial_json(const CalibrationSubject& subject, const Calibration& calibration);
/// kMismatch: of another model, machine or other options, or of another version; kCorrupt,
/// kInvalidArgument: broken.
Result<Calibration> read_partial(const std::string& path, const CalibrationSubject& subject);

}  // namespace ds
