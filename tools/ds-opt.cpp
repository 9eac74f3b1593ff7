// ds-opt: runs the compiler's passes over text of the dialects `reuse` and `plan`.
#include "compiler/opt_main.h"

int main(int argc, char** argv) { return ds::opt_main(argc, argv); }
