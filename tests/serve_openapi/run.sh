#!/usr/bin/env bash
# ds-serve against its own description, by schemathesis. Skipped where PyPI is not there. usage: run.sh BUILD_DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../serve_clients/environment.sh"
enter_environment "$1/serve_openapi" "$here/requirements.txt"
exec "$1/serve_openapi/bin/python" "$here/fuzz.py" "$1"
