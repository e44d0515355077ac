"""Latency of an engine: the same as `p4q-edge bench`, for those who look in tools/ first.

Run: python tools/validate_latency.py build/demo.onnx --batch 1,8 --threads 1 --against fp32
"""

import sys

from p4q_edge.runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
