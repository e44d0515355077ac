#!/usr/bin/env bash
# Make the environment VENV (default .venv) with both distributions, editable, at the versions of constraints.txt.
set -euo pipefail

venv=${1:-.venv}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A candidate counts when it really starts and can make an environment: a pyenv shim exists for versions that are not
# selected, and Debian's python3 may lack ensurepip.
usable() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
  if [[ -n ${P4Q_PYTHON:-} ]]; then
    usable "$P4Q_PYTHON" && { echo "$P4Q_PYTHON"; return; }
    echo "error: P4Q_PYTHON=$P4Q_PYTHON is not a Python 3.11 to 3.13 with venv. Name another one, or install one:" \
         "apt install python3-venv on Debian or Ubuntu, or uv python install 3.12" >&2
    return 3
  fi
  local candidate
  for candidate in python3.12 python3.11 python3.13 python3; do
    if usable "$candidate"; then echo "$candidate"; return; fi
  done
  echo "error: no Python 3.11 to 3.13 with venv was found. On Debian or Ubuntu: apt install python3-venv." \
       "Or name one: make P4Q_PYTHON=/path/to/python3.12" >&2
  return 3
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "Making $venv with $("$python" --version)" >&2
  "$python" -m venv --clear "$venv"
fi
install() {
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt "$@"
}

# The build backend first: an isolated build would fetch whatever version is newest, past the pinned one.
install hatchling editables
install --no-build-isolation --editable ./runtime --editable '.[dev]'
