#!/bin/bash
# What following a live sender is worth (docs/stores.md): its TTFT beside that of waiting for the finished entry, over file: and redis:. Two cores that
# nobody else uses. Usage: bench/live.sh build/release/bin build/release/bin/live_bench [TOKENS...]
set -euo pipefail
bin=$1 bench=$2 && shift 2
lengths=("${@:-}") && [[ -n ${lengths[0]} ]] || lengths=(512 1024 2048)
folder=$(mktemp -d)
end() {
  [[ -f $folder/pid ]] && kill "$(cat "$folder/pid")" 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
export OMP_NUM_THREADS=1
shape=llama:layers=16,d=512,heads=8,kv=4,vocab=8000,positions=8192
"$bin/ds-bench" make-model --shape $shape --seed 1 -o "$folder/S"
"$bin/ds-bench" make-model --shape $shape --seed 2 -o "$folder/R"
taskset -c 1 "$bin/ds-calibrate" --model "$folder/R" --context-lengths "$(IFS=,; echo "${lengths[*]}")" --threads 1 --budget-s 20 -o "$folder/machine.json" >/dev/null
# Half of the layers are recomputed, as deep pairs need: the receiver's own work is about half of a prefill.
"$bin/ds-compile" --receiver "$folder/R" --sender "$folder/S" --machine "$folder/machine.json" --recompute 4-11 \
  --context-lengths "$(IFS=,; echo "${lengths[*]}")" --link-rates 1GB/s -o "$folder/plan.dsplan" >/dev/null
echo "file:"
"$bench" "$folder/plan.dsplan" "file:$folder/store" "${lengths[@]}"
if command -v redis-server >/dev/null; then
  port=$((20000 + RANDOM % 10000))
  redis-server --bind 127.0.0.1 --port $port --save '' --daemonize yes --pidfile "$folder/pid" --dir "$folder" >/dev/null
  sleep 1
  echo "redis: (its server takes from both cores)"
  "$bench" "$folder/plan.dsplan" "redis://127.0.0.1:$port" "${lengths[@]}"
fi
