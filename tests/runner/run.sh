#!/usr/bin/env bash
# tests/run.py itself, on programs made up for it. usage: run.sh BUILD_DIR
exec python3 "$(dirname "$0")/runner.py"
