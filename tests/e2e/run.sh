#!/usr/bin/env bash
# From two checkpoints to answers, through the tools alone. usage: run.sh BUILD_DIR
exec python3 "$(dirname "$0")/pair.py" "$1"
