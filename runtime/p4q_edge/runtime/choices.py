"""Names of choices that the command line offers; kept apart so that `--help` loads no numpy."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["onnxruntime", "tensorrt"]
"""The library that runs an engine."""

CpuProfile = Literal["exact", "fast", "float"]
"""`exact`: 8-bit weights. `fast`: 7-bit weights, which x86 processors without VNNI add without saturation. `float`:
FP32 with the quantized weights' values."""

CpuChoice = Literal["exact", "fast", "float", "auto"]
"""A profile, or `auto`: `exact` unless FP32 is faster on this processor, as it is for some convolutional encoders."""

Fast = Literal["reducing_gap", "draft"]
"""`reducing_gap`: shrink by an integer factor before the filter is applied. `draft`: also let the JPEG decoder
skip detail that is not needed. Both act on large pictures only."""
