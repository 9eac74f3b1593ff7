#!/usr/bin/env bash
# ds-profile on the trained pair, through the tool alone. usage: run.sh BUILD_DIR
exec python3 "$(dirname "$0")/profile.py" "$1"
