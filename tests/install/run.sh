#!/usr/bin/env bash
# usage: tests/install/run.sh BUILD_DIR
# Installs a finished build into a new folder, moves that folder, and builds and runs a small project outside the
# tree against it with find_package(droidspeak). Exit status 0 only if all of that worked.
set -euo pipefail

[ $# -eq 1 ] && [ -f "$1/CMakeCache.txt" ] || { echo "usage: $0 BUILD_DIR (a configured and built tree)" >&2; exit 2; }
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
cached() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
step() { # step WHAT COMMAND...: quiet unless it fails
  local what=$1
  shift
  if ! "$@" >"$work/log" 2>&1; then
    tail -n 60 "$work/log"
    echo "FAILED: $what"
    exit 1
  fi
}

step "cmake --install" cmake --install "$build" --prefix "$work/first"
mv "$work/first" "$work/prefix" # an installed tree can be moved
if leaks=$(grep -rlE --include='*.cmake' "$source|$build|$work" "$work/prefix"); then
  echo "FAILED: installed files name folders of the build: $leaks"
  exit 1
fi

step "configuring the outside project" cmake -S "$here" -B "$work/outside" -G "$(cached CMAKE_GENERATOR)" \
  -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CXX_COMPILER="$(cached CMAKE_CXX_COMPILER)" \
  -DCMAKE_CXX_COMPILER_LAUNCHER="$(cached DS_CCACHE | grep -v NOTFOUND || true)" -DCMAKE_BUILD_TYPE=Debug
step "building the outside project" cmake --build "$work/outside"

mkdir "$work/data"
step "running the outside program" "$work/outside/outside" "$work/data"
cp "$work/log" "$work/output"
cat >"$work/expected" <<END
plan: full-prefill, 3 layers, OPS operations
store: file:$work/data/store, 5 bytes
entry: not found
backend: cpu
cache: hit
tokenizer: not found
END
# embed, one per layer and the suffix's last part, head: the number belongs to the plan's own tests
sed -E -i 's/[1-9][0-9]* operations/OPS operations/' "$work/output"
if ! diff "$work/expected" "$work/output"; then
  echo "FAILED: the outside program printed something else (left: expected)"
  exit 1
fi

step "reading the plan with droidspeak::plans alone" "$work/outside/plans_only" "$work/data/outside.dsplan"
head -c 100 "$work/data/outside.dsplan" >"$work/data/torn.dsplan"
if "$work/outside/plans_only" "$work/data/torn.dsplan" 2>/dev/null; then
  echo "FAILED: a truncated plan was accepted"
  exit 1
fi
echo "an outside project builds and runs against the installed tree"
