#!/usr/bin/env bash
# runtime/ and plans/ build without LLVM and without the compiler, and their tools run. usage: run.sh BUILD_DIR
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$1/runtime-only
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DDS_COMPILER=OFF -DDS_TESTS=OFF
cmake --build "$build" -- --quiet ds-plan ds-run
if ldd "$build/bin/ds-run" "$build/bin/ds-plan" | grep -E "LLVM|MLIR"; then echo "LLVM is linked in"; exit 1; fi
"$build/bin/ds-plan" verify "$root"/plans/golden/*.dsplan
"$build/bin/ds-run" --receiver "$root/examples/pair/receiver" --context "$root/examples/pair/data/demo_context.txt" \
  --prompt "$(cat "$root/examples/pair/data/demo_question.txt")" | grep -F "$(cat "$root/examples/pair/data/demo_answer.txt")"
# What needs the compiler says so.
if "$build/bin/ds-plan" dump "$(ls "$root"/plans/golden/*.dsplan | head -1)" --format mlir 2>"$build/mlir.txt"; then exit 1; fi
grep -i compiler "$build/mlir.txt"
