"""Doubles of CUDA and TensorRT.

The TensorRT double has the classes, members and enums of `surface.json` and no other; the contract tests
(tests/compiler/contract) compare that file with NVIDIA's bindings, so what runs against the double uses only what every
supported TensorRT has. Its engine computes in NumPy: `embedding` of an image is the mean of its channels.
"""
