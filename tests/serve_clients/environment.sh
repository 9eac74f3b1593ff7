# Sourced. enter_environment FOLDER REQUIREMENTS: a virtual environment with what a test needs from PyPI, made where it is not there yet.
# Exit 77 where it cannot be.
enter_environment() {
  local log
  cmp -s "$2" "$1/installed.txt" && return
  rm -rf "$1"
  log=$(mktemp)
  if ! { python3 -m venv "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 20 -r "$2"; } >"$log" 2>&1; then
    rm -rf "$1"
    echo "skipped: $2 cannot be installed: $(tail -n 1 "$log")"
    rm -f "$log"
    exit 77
  fi
  rm -f "$log"
  cp "$2" "$1/installed.txt"
}
