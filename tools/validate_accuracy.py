"""Accuracy of an engine against its references: the same as `p4q-edge validate`, for those who look in tools/ first.

Run: python tools/validate_accuracy.py build/demo.onnx --max-top1-drop 1.0 --report build/demo.html
"""

import sys

from p4q_edge.runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["validate", *sys.argv[1:]]))
