// ds-opt's main: mlir-opt with our dialects and passes.
#pragma once

namespace ds {

int opt_main(int argc, char** argv);

}  // namespace ds
