#!/usr/bin/env bash
# Two replicas of ds-serve behind nginx, with one Redis. usage: run.sh BUILD_DIR
for program in nginx redis-server; do
  PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || { echo "skipped: there is no $program here (apt-get install nginx-light redis-server)"; exit 77; }
done
PATH=$PATH:/usr/sbin exec python3 "$(dirname "$0")/replicas.py" "$1"
