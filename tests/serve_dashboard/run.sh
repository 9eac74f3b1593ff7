#!/usr/bin/env bash
# The dashboard of docs/ against a real Prometheus and Grafana's own models of it. Skipped where either is not there. usage: run.sh BUILD_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
command -v prometheus >/dev/null || { echo "skipped: no prometheus"; exit 77; }
. "$here/../serve_clients/environment.sh"
enter_environment "$1/serve_dashboard" "$here/requirements.txt"
exec "$1/serve_dashboard/bin/python" "$here/dashboard.py" "$1"
