// What one program of the suite runs on. The suite is compiled once; the programs differ in this alone.
#pragma once

namespace ds::conformance {

struct Program {
  const char* max_isa;      // as oneDNN names it; empty: all that the machine has
  const char* cuda_module;  // null: the CPU; empty: the module beside the programs
  bool blocks;              // the CPU's products are made of blocks of rows, as they are with AMX
};
extern const Program kProgram;  // program.cpp

}  // namespace ds::conformance
