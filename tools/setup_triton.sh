#!/usr/bin/env bash
# Make .venv-triton: Triton's server for CPUs (wheel nvidia-pytriton) and its clients, for tests/triton. About 450 MB.
#   tools/setup_triton.sh [PYTHON]
# The server's Python backend needs NumPy 1.26: with NumPy 2 every output arrives with 0 bytes. PyTriton's own Python API
# is not used, so its requirements are left out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-python3.11}
"$python" -m venv .venv-triton
pip=(.venv-triton/bin/python -m pip install --quiet)
"${pip[@]}" numpy==1.26.4 pillow safetensors msgspec onnxruntime 'tritonclient[http,grpc]'
"${pip[@]}" --no-deps nvidia-pytriton==0.7.0
