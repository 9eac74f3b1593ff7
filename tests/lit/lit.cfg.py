# Text tests of the compiler and the tools. %models, %adapters and %tokenizers are those under tests/golden, %pair
# the trained pair.
import os

import lit.formats

config.name = "droidspeak"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["Inputs"]
# A test that hangs is killed and named. lit needs psutil for it; without it the limit of tests/run.py ends lit as a whole.
if lit_config.maxIndividualTestTimeIsSupported[0]:
    lit_config.maxIndividualTestTime = max(1, int(float(os.environ.get("DROIDSPEAK_TEST_TIME_LIMIT", 600)) / 4))
config.test_source_root = os.path.dirname(__file__)
config.environment["PATH"] = os.pathsep.join(
    [os.path.join(config.ds_binary_dir, "bin"), config.llvm_tools_dir, config.environment["PATH"]]
)
config.substitutions.append(("%models", os.path.join(config.ds_source_dir, "tests", "golden", "models")))
config.substitutions.append(("%adapters", os.path.join(config.ds_source_dir, "tests", "golden", "adapters")))
config.substitutions.append(("%tokenizers", os.path.join(config.ds_source_dir, "tests", "golden", "tokenizers")))
config.substitutions.append(("%pair", os.path.join(config.ds_source_dir, "examples", "pair")))
config.substitutions.append(("%inputs", os.path.join(config.test_source_root, "Inputs")))

# The CUDA backend on the device that is simulated on the CPU.
module = os.path.join(config.ds_binary_dir, "tests", "droidspeak_cuda_simulated.so")
if os.path.exists(module):
    config.available_features.add("cuda-simulated")
config.substitutions.append(("%cuda_module", module))
