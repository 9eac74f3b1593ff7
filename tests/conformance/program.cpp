#include "tests/conformance/program.h"

const ds::conformance::Program ds::conformance::kProgram{DS_CONFORMANCE_ISA, DS_CONFORMANCE_CUDA,
                                                         DS_CONFORMANCE_BLOCKS};
