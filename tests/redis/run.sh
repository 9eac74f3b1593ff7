#!/usr/bin/env bash
# The tools on entries at real servers. usage: run.sh BUILD_DIR
exec python3 "$(dirname "$0")/tools.py" "$1"
