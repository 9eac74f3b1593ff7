#!/usr/bin/env bash
# Serves the trained pair: usage: serve.sh BIN [OPTIONS of ds-serve]. Ends with Ctrl-C.
set -euo pipefail
bin=$(realpath "$1") && shift
cd "$(dirname "$0")/pair"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/ds-compile" --receiver receiver --sender sender --context-lengths 403 --link-rates 400MB/s --quality quality.json --slo-loss 5 -o "$work/plan.dsplan"
cat >"$work/fleet.json" <<JSON
{"models": [{"name": "sender", "folder": "$PWD/sender", "publish": true},
            {"name": "receiver", "folder": "$PWD/receiver", "reuse": "approximate"}],
 "store": {"url": "file:$work/store"},
 "plans": [{"file": "$work/plan.dsplan", "profile": "$PWD/quality.json"}],
 "gate": {"false_alarms": "5%"}}
JSON
cat <<TEXT
What the sender has read, the receiver reuses. In another terminal:
  cd $PWD
  ask() { python3 -c 'import json, sys; print(json.dumps({"model": sys.argv[1], "prompt": open("data/demo_context.txt").read() + open("data/demo_question.txt").read(), "max_tokens": 2}))' "\$1" |
    curl -s http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d @- | python3 -m json.tool; }
  ask sender; sleep 1; ask receiver     # its "droidspeak" says what was reused; http://127.0.0.1:8000/ shows it
TEXT
"$bin/ds-serve" --fleet "$work/fleet.json" "$@"
