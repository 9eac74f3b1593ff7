// What this machine does with a model of random weights: a machine profile, measured now or read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compiler/inputs/machine.h"
#include "runtime/core/calibration_json.h"
#include "tools/ds-bench/bench.h"
#include "tools/host.h"

namespace ds {

/// `path`: a machine.json of this shape; empty: measured here, for `seconds`, at these lengths.
inline Result<MachineModel> measured_machine(const RandomModelOptions& o, RandomModel& loaded,
                                             std::string path, const std::vector<int64_t>& lengths,
                                             int64_t suffix, double seconds) {
  TemporaryFolder folder;
  if (path.empty()) {
    DS_TRY(folder.make("ds-machine"));
    DS_ASSIGN(auto store, open_store("file:" + folder.path + "/store"));
    ProgressBar bar("calibrating");
    CalibrationOptions options;
    options.contexts = lengths;
    options.suffix = suffix;
    options.budget_ns = static_cast<int64_t>(seconds * 1e9);
    options.store = store.get();
    options.progress = [&](int64_t done, int64_t total) { bar.update(done, total); };
    DS_ASSIGN(Calibration c, calibrate(*loaded.backend, *loaded.model, options));
    CalibrationSubject subject{.name = cpu_name(),
                               .backend = std::string(loaded.backend->name()),
                               .description = loaded.backend->description(),
                               .cpu = cpu_name(),
                               .kernel = kernel_name(),
                               .threads = o.on.threads,
                               .shape = loaded.model->config().shape(),
                               .dtype = loaded.dtype,
                               .options = ""};
    path = folder.path + "/machine.json";
    DS_TRY(write_file_atomically(path, machine_json(subject, c)));
  }
  DS_ASSIGN(MachineModel machine, MachineModel::read(path));
  DS_TRY(machine.check_shape(path, loaded.model->config().shape()));
  return machine;
}

}  // namespace ds
