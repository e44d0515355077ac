#!/usr/bin/env bash
# Everything that must hold before a commit, cheapest first. `make check` runs it in .venv.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${VENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
"$bin/python" -m pytest "$@"
