#!/usr/bin/env bash
# Clients of OpenAI's API, as they are on PyPI, against ds-serve. Skipped where PyPI is not there. usage: run.sh BUILD_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/environment.sh"
enter_environment "$1/serve_clients" "$here/requirements.txt"
exec "$1/serve_clients/bin/python" "$here/clients.py" "$1"
