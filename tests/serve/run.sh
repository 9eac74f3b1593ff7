#!/usr/bin/env bash
# ds-serve over HTTP, with the trained pair. usage: run.sh BUILD_DIR
exec python3 "$(dirname "$0")/serve.py" "$1"
