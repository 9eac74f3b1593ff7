#!/usr/bin/env bash
# The real fleet's questions and adapters, without its models. usage: run.sh BUILD_DIR
exec python3 "$(dirname "$0")/real.py" "$1"
