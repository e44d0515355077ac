#!/usr/bin/env bash
# Everything that must hold before a commit, cheapest first; --lint runs no test. `make check` runs it in .venv, with the slow tests.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${VENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
if [[ ${1:-} == --lint ]]; then exit 0; fi
"$bin/python" -m pytest "$@"
