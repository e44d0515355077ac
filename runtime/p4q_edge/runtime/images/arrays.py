"""Pixels and encoded bytes in the forms that programs hold them: arrays, tensors, buffers, uploads."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from p4q_edge.runtime.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class TensorLike(Protocol):
    """A tensor of torch, which is never imported here."""

    def detach(self) -> Any: ...


def is_buffer(image: object) -> bool:
    """Return whether an object is the bytes of an image file, or a file that gives them."""
    return isinstance(image, (bytes, bytearray, memoryview)) or hasattr(image, "read")


def is_tensor(image: object) -> bool:
    """Return whether an object is a tensor of torch, which is never imported here."""
    return type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "detach")


def encoded_bytes(image: Any, *, limit: int) -> bytes:
    """Return the bytes of an image file from a buffer, or from an object that has `read`, such as an upload.

    Raises:
        InputError: the file gives text, nothing, more than `limit` bytes, or only to `await`.
    """
    if not hasattr(image, "read"):
        data = bytes(image)
        if not data:
            raise InputError("the image has 0 bytes. Check where its bytes come from.")
        return data
    kind = type(image).__name__
    try:
        data = image.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"the {kind} cannot be read: {error}. Pass it before it is closed, or its bytes.") from error
    if inspect.iscoroutine(data):
        data.close()
        raise InputError(f"the {kind} can only be read with await. Pass `upload.file`, or `await upload.read()`.")
    if not isinstance(data, bytes):
        raise InputError(f'the {kind} gives {type(data).__name__}, not bytes. Open the file with mode "rb".')
    if not data:
        raise InputError(
            f"the {kind} gives no bytes. Rewind it first: `file.seek(0)`; one that nobody read is empty, as of a form "
            "that was sent without a file."
        )
    if len(data) > limit:
        raise InputError(f"the {kind} gives more than {limit} bytes. Use a smaller copy of the image.")
    return data


def as_pixels(array: Any) -> np.ndarray:
    """Return uint8 (H, W, 3) or (H, W) of an array of NumPy (channels last) or a tensor of torch (channels first).

    A tensor may have its channels last where that cannot be mistaken.

    Raises:
        InputError: another shape or another type; the message has the line that converts it.
    """
    import numpy as np

    tensor = is_tensor(array)
    name = "tensor" if tensor else "array"
    values = np.asarray(array.detach().cpu()) if tensor else array
    first, last = _channels(values, 0), _channels(values, -1)
    if values.dtype != np.uint8 or not values.size or values.ndim not in (2, 3):
        raise _unfit(values, name=name)
    if values.ndim == 2:
        return values
    if tensor and first and last:
        raise InputError(
            f"a tensor of {values.shape} may have its channels first or last. Say so: pass `tensor.permute(1, 2, 0)` "
            "as an array (`.numpy()`) if they are first, `tensor.numpy()` if they are last."
        )
    if tensor and first:
        values = values.transpose(1, 2, 0)
    elif not last:
        raise _unfit(values, name=name)
    return values[:, :, 0] if values.shape[2] == 1 else values


def _channels(values: np.ndarray, axis: int) -> bool:
    return values.ndim == 3 and values.shape[axis] in (1, 3)


def _unfit(values: np.ndarray, *, name: str) -> InputError:
    expected = "(3, H, W) or (H, W)" if name == "tensor" else "(H, W, 3) or (H, W)"
    return InputError(
        f"expected {'a tensor' if name == 'tensor' else 'an array'} {expected} of uint8; got {values.shape} of "
        f"{values.dtype}. {_advice(values, name)}"
    )


def _advice(values: np.ndarray, name: str) -> str:
    import numpy as np

    method = "numpy()." if name == "tensor" else ""
    if not values.size:
        return "It has no pixels: check where it comes from."
    if values.ndim == 4:
        return f"Pass its images one by one: `list({name})`."
    if values.ndim not in (2, 3):
        return "Pass the pixels of one image."
    if values.dtype != np.uint8 and _channels(values, 0) and not _channels(values, -1):
        # What is converted is an array, and an array has its channels last.
        name = f"{name}.permute(1, 2, 0)" if name == "tensor" else f"{name}.transpose(1, 2, 0)"
    if values.dtype == np.bool_:
        return f"Convert it: `{name}.{method}astype('uint8') * 255`."
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            return "Some of its values are not finite: check where it comes from."
        if values.min() < 0:
            return "Some of its values are negative, as after a normalization: pass the pixels from before it."
        scaled = f"({name} * 255)" if values.max() <= 1 else name
        return f"Convert it: `{scaled}.{method}round().clip(0, 255).astype('uint8')`."
    if values.dtype in (np.uint16, np.int32, np.int64, np.uint32, np.int16) and values.max() > 255:
        return f"Take its upper 8 bits if it has 16: `({name} >> 8).{method}astype('uint8')`."
    if values.dtype != np.uint8:
        return f"Convert it: `{name}.{method}astype('uint8')`."
    if _channels(values, 0):
        return f"Its channels stand first: `{name}.transpose(1, 2, 0)`."
    if values.shape[-1] in (2, 4):
        return f"Leave out its alpha: `{name}[:, :, :{values.shape[-1] - 1}]`."
    return "Pass three channels, or one."
