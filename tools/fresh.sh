#!/usr/bin/env bash
# `make test` and `make demo` from nothing, for each named Python: a fresh clone, an empty home, an empty cache.
# Prints a table; ends with 1 if a step of a Python failed.
#
# Run: tools/fresh.sh python3.11 python3.12 /path/to/python3.13
# FRESH_TARGETS="test demo" are the targets of make, FRESH_FOLDER is kept (default: a temporary folder, removed),
# FRESH_FROM is what is cloned (default: this checkout's commit).
set -uo pipefail

(($#)) || { echo "usage: tools/fresh.sh PYTHON...   (for example python3.11 python3.12 python3.13)" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
from=${FRESH_FROM:-$root}
read -ra targets <<<"${FRESH_TARGETS:-test demo}"
if [[ -n ${FRESH_FOLDER:-} ]]; then
  work=$FRESH_FOLDER
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi

# Where packages come from is the machine's business, although a user's own settings lie in the home.
settings=${PIP_CONFIG_FILE:-$HOME/.config/pip/pip.conf}
[[ -f $settings ]] && export PIP_CONFIG_FILE=$settings

rows=()
failed=0
for python in "$@"; do
  if ! version=$("$python" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))' 2>/dev/null); then
    echo "$python does not start. Install it: apt install python3 python3-venv, or pyenv install VERSION" >&2
    rows+=("$python|-|does not start")
    failed=1
    continue
  fi
  clone="$work/$version"
  rm -rf "$clone" "$clone.home"
  git clone --quiet --no-hardlinks "$from" "$clone"
  mkdir -p "$clone.home"
  row="$python|$version"
  for target in "${targets[@]}"; do
    start=$SECONDS
    if env -u VIRTUAL_ENV -u PYTHONPATH -u XDG_CACHE_HOME -u P4Q_EDGE_CACHE HOME="$clone.home" \
      P4Q_PYTHON="$(command -v "$python")" make --directory="$clone" "$target" >"$clone.$target.log" 2>&1; then
      result="passed in $((SECONDS - start)) s"
      [[ $target == test ]] && result+=" ($(grep -Eo '[0-9]+ (passed|skipped)' "$clone.test.log" | tail -2 | paste -sd ' '))"
    else
      result="FAILED after $((SECONDS - start)) s: $(grep -E '^(error|FAILED|ERROR|E  )' "$clone.$target.log" | tail -1 | cut -c1-150)"
      failed=1
    fi
    row+="|$target: $result"
    echo "$version $target: $result" >&2
  done
  rows+=("$row")
done

echo "| Python | version |$(printf ' %s |' "${targets[@]}")"
echo "| --- | --- |$(printf ' --- |%.0s' "${targets[@]}")"
for row in "${rows[@]}"; do
  echo "| ${row//|/ | } |"
done
exit "$failed"
