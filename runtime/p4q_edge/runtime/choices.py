"""Names of choices that the command line offers; kept apart so that `--help` loads no numpy."""

from __future__ import annotations

from typing import Literal, get_args

BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
"""The library that runs an engine."""

CpuBackend = Literal["onnxruntime", "openvino"]
"""Of these, the ones that run on CPUs, both from the same `.onnx` file."""
CPU_BACKENDS: tuple[CpuBackend, ...] = get_args(CpuBackend)

Remainder = Literal["f32", "bf16"]
"""In which precision OpenVINO computes what is not quantized."""

RemainderChoice = Literal["f32", "bf16", "auto"]
"""A remainder, or `auto`: `bf16` where this processor has such instructions and it is faster here."""

CpuProfile = Literal["exact", "fast", "float", "convolutions", "fast-convolutions"]
"""`exact`: 8-bit weights. `fast`: 7-bit weights, which x86 processors without VNNI add without saturation. `float`:
FP32 with the quantized weights' values. In these convolutions compute in FP32; in `convolutions` they are quantized as
for GPUs, and in `fast-convolutions` too, with 7-bit weights where 8-bit ones could overflow there."""

CONVOLUTION_PROFILES: tuple[CpuProfile, ...] = ("convolutions", "fast-convolutions")
"""Profiles whose convolutions are quantized; OpenVINO alone is faster with them."""
SEVEN_BIT_PROFILES: tuple[CpuProfile, ...] = ("fast", "fast-convolutions")

CpuChoice = Literal["exact", "fast", "float", "convolutions", "fast-convolutions", "auto"]
"""A profile, or `auto`: what is faster here of those that compute what the reference computes, see `builders.cpu`."""

Fast = Literal["reducing_gap", "draft"]
"""`reducing_gap`: shrink by an integer factor before the filter is applied. `draft`: also let the JPEG decoder
skip detail that is not needed. Both act on large pictures only."""

NumberFormat = Literal["int", "fp8"]
"""What quantized values are: integers, or floating-point numbers E4M3 of 8 bits."""

PlanPrecision = Literal["auto", "int8", "int4", "fp8", "fp16"]
"""What a TensorRT build is asked for; `auto` builds all, measures them and keeps the better one. `int8`, `int4` and
`fp8` are what the bundle is quantized to."""

PlanFlavour = Literal["int8", "int8-linears", "int4", "fp8", "fp16"]
"""What a plan is: `int8-linears` is the INT8 model with its convolutions in FP16, `int4` one of INT4 weights in blocks,
which products with FP16 activations read, `fp8` one whose linears multiply 8-bit floating-point numbers E4M3."""

QuantizedFlavour = Literal["int8", "int4", "fp8"]
"""What the linears of a bundle are quantized to, as plans are called."""

Typing = Literal["auto", "strong", "weak"]
"""Who chooses the types of a TensorRT network: the model (`strong`) or TensorRT."""

Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
"""For which GPUs a plan is made."""

Prefer = Literal["speed", "size"]
"""What `auto` means by the better plan."""

CudaBackend = Literal["auto", "driver", "cuda-bindings", "pycuda"]
"""What reaches CUDA: the driver's own library, which `auto` takes, or a package."""

LEAST_FPS = 1e-5
"""Images a second: about one a day, beyond which clocks have no room for the pause."""
MAX_BATCH = 4096
"""Images of one run of an engine; beyond that only memory is needed, and nothing gets faster."""

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts; where one of them is missing, something else set the others."""

GraphKind = Literal["fp32", "fp16"]
"""A graph of a bundle by what its part is that is not quantized: `fp32` for CPUs, `fp16` for TensorRT."""
