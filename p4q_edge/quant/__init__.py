"""Quantization: one scheme, one arithmetic, used by learning, export, lint and tests alike."""
