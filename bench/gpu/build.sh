#!/usr/bin/env bash
# One file to carry to a machine with a GPU: the programs that measure and test, the CUDA module, the libraries that they
# need besides CUDA's own, and run.py. No compiler, no toolkit and no network are needed there.
#   bench/gpu/build.sh [OUT.tar.xz]              default: build/gpu-bench.tar.xz
#   bench/gpu/build.sh OUT.tar.xz PLANS          with the plans of ds-bench make-plans
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${1:-}" in -h|--help) sed -n '2,6s/^# \?//p' "$0"; exit 0 ;; esac
out=$(realpath -m "${1:-build/gpu-bench.tar.xz}") plans=${2:-}
command -v nvcc >/dev/null || { echo "bench/gpu/build.sh: nvcc is not on PATH; install the CUDA toolkit" >&2; exit 1; }
./dev build cuda >&2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bundle=$folder/gpu-bench
mkdir -p "$bundle"/{bin,lib,tests}
cp build/cuda/bin/{ds-bench,ds-calibrate,ds-profile,ds-run,ds-publish,droidspeak_cuda.so} "$bundle/bin"
for test in build/cuda/tests/{conformance_cuda_test,cuda_*_test}; do
  case $test in *simulat*|*library*) ;; *) [ -x "$test" ] && cp "$test" "$bundle/tests" ;; esac
done
ln -s ../bin/droidspeak_cuda.so "$bundle/tests/droidspeak_cuda.so"
cp bench/gpu/{run.py,torch_prefill.py,README.md} "$bundle"
mkdir "$bundle/pair"
cp -r examples/pair/{receiver,sender,data,maps.safetensors} "$bundle/pair"
[ -z "$plans" ] || cp -r "$plans" "$bundle/plans"
# What the other machine has anyway: the C and C++ libraries, the driver and CUDA.
ldd "$bundle"/bin/ds-* "$bundle"/tests/*_test | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux[^/]*|libcuda|libcudart|libcublas[^/]*|libcudnn[^/]*|libnvrtc[^/]*)\.so' |
  while read -r library; do cp -L "$library" "$bundle/lib"; done
strip "$bundle"/bin/ds-* "$bundle"/tests/*_test
printf '%s\n' "$(git rev-parse HEAD)$(git diff --quiet HEAD || echo ' with changes')" >"$bundle/REVISION"
mkdir -p "$(dirname "$out")"
tar -C "$folder" -cf - gpu-bench | xz -T0 -6 >"$out.partial"
mv "$out.partial" "$out"
printf '%s: %s MiB\n  there: tar xf %s && gpu-bench/run.py -o results.json\n' "$out" "$(($(stat -c %s "$out") / 1048576))" "$(basename "$out")"
