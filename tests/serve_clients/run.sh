#!/usr/bin/env bash
# Clients of OpenAI's API, as they are on PyPI, against ds-serve. Skipped where PyPI is not there. usage: run.sh BUILD_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
environment=$1/serve_clients
if ! cmp -s "$here/requirements.txt" "$environment/installed.txt"; then
  rm -rf "$environment"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! { python3 -m venv "$environment" && "$environment/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 20 -r "$here/requirements.txt"; } >"$log" 2>&1; then
    rm -rf "$environment"
    echo "skipped: the clients cannot be installed: $(tail -n 1 "$log")"
    exit 77
  fi
  cp "$here/requirements.txt" "$environment/installed.txt"
fi
exec "$environment/bin/python" "$here/clients.py" "$1"
