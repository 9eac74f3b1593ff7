#!/usr/bin/env bash
# The main job on real input: two trained models, a plan for the pair, the sender's cache published, and the receiver
# answering through a link of a stated rate, six ways. usage: examples/demo.sh BIN_DIR [LINK_RATE]
set -euo pipefail
bin=$(cd "${1:?usage: demo.sh BIN_DIR [LINK_RATE]}" && pwd)
rate=${2:-400MB/s}
here=$(cd "$(dirname "$0")" && pwd)
pair=$here/pair
work=${DS_DEMO_DIR:-$here/../build/demo}
rm -rf "$work" && mkdir -p "$work"
work=$(cd "$work" && pwd)
question=$(cat "$pair/data/demo_question.txt")
answer=$(cat "$pair/data/demo_answer.txt")
step() { printf '\n== %s\n' "$*"; }

step "the models: $(basename "$pair")/sender and $(basename "$pair")/receiver, two fine-tunes of one base"
"$bin/ds-run" --receiver "$pair/receiver" --context "$pair/data/demo_context.txt" --prompt "$question" --json \
  --max-new-tokens 16 >"$work/full.json"
tokens=$(sed -n 's/.*"context_tokens": \([0-9]*\).*/\1/p' "$work/full.json")
printf 'context: %s tokens, %s ...\n%s %s\n' "$tokens" "$(head -c 200 "$pair/data/demo_context.txt" | tr '\n' ' ')" "$question" "($answer is right)"

step "how well the receiver answers over each cache (ds-profile): here on 8 documents; quality.json is of all 204"
head -n 8 "$pair/data/notes_qa.jsonl" >"$work/qa.jsonl" && head -n 8 "$pair/data/module_code.jsonl" >"$work/code.jsonl"
"$bin/ds-profile" --sender "$pair/sender" --receiver "$pair/receiver" --data "$work/qa.jsonl" "$work/code.jsonl" \
  --prompts "$pair/data/prompts.json" --fit-data "$pair"/fit/*.jsonl --no-controls -o "$work/quality.json"
"$bin/ds-profile" report "$pair/quality.json" -o "$work/quality.html"

step "measure this machine (ds-calibrate)"
"$bin/ds-calibrate" --model "$pair/receiver" --context-lengths "$tokens" --suffix-length 16 -o "$work/machine.json"

step "compile (ds-compile): a plan within 5 points of loss, one with aligned cuts within 1 point, and three things to compare them with"
compile() { "$bin/ds-compile" --receiver "$pair/receiver" --sender "$pair/sender" --machine "$work/machine.json" \
  --context-lengths "$tokens" --suffix-length 16 --link-rates "$rate" "$@"; }
compile --quality "$pair/quality.json" --slo-loss 5 -o "$work/plan.dsplan"
compile --quality "$pair/quality.json" --slo-loss 1 --maps "$pair/maps.safetensors" -o "$work/aligned.dsplan"
maps=(--maps "$pair/maps.safetensors")
# Over a slow link the receiver does better by itself.
"$bin/ds-plan" dump --format json "$work/aligned.dsplan" | grep -q '"way": ".* aligned' || maps=()
compile --policy full-reuse -o "$work/full-reuse.dsplan"
# The schedules that others use, for the group that keeps this objective.
for schedule in serial kv-preload; do
  compile --quality "$pair/quality.json" --recompute 7-10 --chunks 1 --schedule $schedule -o "$work/$schedule.dsplan"
done
"$bin/ds-plan" dump "$work/aligned.dsplan"

step "publish the sender's cache (ds-publish)"
"$bin/ds-publish" --model "$pair/sender" --context "$pair/data/demo_context.txt" --store "file:$work/store" \
  --plan "$work/plan.dsplan" --plan "$work/serial.dsplan" --plan "$work/aligned.dsplan" "${maps[@]}"

step "answer six ways through a link of $rate (ds-bench ttft)"
"$bin/ds-bench" ttft --receiver "$pair/receiver" --store "file:$work/store" --context "$pair/data/demo_context.txt" \
  --prompt "$question" --answer "$answer" --link-rate "$rate" --json "$work/ttft.json" \
  --plan "full reuse=$work/full-reuse.dsplan" --plan "serial=$work/serial.dsplan" \
  --plan "kv-preload=$work/kv-preload.dsplan" --plan "plan=$work/plan.dsplan" \
  --plan "aligned=$work/aligned.dsplan" "${maps[@]}"

step "the schedule, predicted beside measured (ds-run --record, ds-plan trace)"
"$bin/ds-run" --receiver "$pair/receiver" --plan "$work/aligned.dsplan" "${maps[@]}" --store "file:$work/store" \
  --link-rate "$rate" \
  --context "$pair/data/demo_context.txt" --prompt "$question" --max-new-tokens 16 --record "$work/run.jsonl" --json >"$work/run.json"
"$bin/ds-plan" trace --plan "$work/aligned.dsplan" --record "$work/run.jsonl" --format html -o "$work/schedule.html"
"$bin/ds-plan" trace --plan "$work/aligned.dsplan" --record "$work/run.jsonl" --format chrome -o "$work/schedule.trace.json"
echo "picture of the schedule: $work/schedule.html"
echo "of the quality of every group of layers: $work/quality.html"
echo "for Perfetto or chrome://tracing: $work/schedule.trace.json"
