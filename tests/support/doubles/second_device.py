"""A device beside the CPU that needs no GPU: it computes on the CPU, and refuses what CUDA refuses.

Its name is `meta`, the one device for which torch has neither memory nor kernels of its own, but whose backward pass
runs on the calling thread. Tensors that come to it, and those that are made on it, carry their values along; an
operation of one of them with a tensor that was left on the CPU raises `LeftOnCpuError`. As on CUDA, single numbers of
the CPU take part in everything that is computed value by value, and index tensors of the CPU may index.

So whole stages run with true values, gradients and all, which fake tensors cannot do: they stop at the first number
that is read (`float(scale)`), and their backward pass asks for a real context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

DEVICE = torch.device("meta")
CPU = torch.device("cpu")

aten = torch.ops.aten

_BY_INDEX = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


class LeftOnCpuError(RuntimeError):
    """A tensor was left on the CPU where the others are on the second device."""


class SecondDeviceTensor(Tensor):
    """A tensor of the second device; `held` has its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SecondDeviceTensor:
        made: SecondDeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @property
    def is_meta(self) -> bool:
        """Whether there are no values; torch asks before it loads some."""
        return False

    @property
    def data(self) -> SecondDeviceTensor:
        """As that of any tensor; a new value of it must have the same shape."""
        return SecondDeviceTensor(self.held)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, SecondDeviceTensor) or value.shape != self.shape:
            raise LeftOnCpuError(f"expected new data of shape {tuple(self.shape)} on the second device, got {value!r}")
        self.held = value.held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Takes in what is made on the device without a tensor of it, such as `torch.zeros(3, device="meta")`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Takes in `torch.tensor(numbers, device="meta")`, which torch makes without an operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            return func(*args, **{**kwargs, "device": CPU}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Make the device, for the length of a ``with`` block."""
    with _Mode(), _Numbers():
        yield DEVICE


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    ours = [value for value in tensors if isinstance(value, SecondDeviceTensor)]
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    if not ours and target != DEVICE:
        return func(*args, **kwargs)
    if ours:
        _refuse_mixed(func, args, kwargs, tensors)
    plain_args, plain_kwargs = tree_unflatten(
        [value.held if isinstance(value, SecondDeviceTensor) else value for value in flat], spec
    )
    if target is not None:
        plain_kwargs["device"] = CPU
    result = func(*plain_args, **plain_kwargs)
    if target == CPU or func is aten._local_scalar_dense.default:
        return result
    wrapped = tree_map_only(Tensor, SecondDeviceTensor, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def _refuse_mixed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    if func is aten.copy_.default:  # moves values between devices
        return
    if func in _BY_INDEX and isinstance(args[0], SecondDeviceTensor):
        values = args[2:3]
        tensors = [value for value in values if isinstance(value, Tensor)]
    by_value = torch.Tag.pointwise in func.tags
    for tensor in tensors:
        if isinstance(tensor, SecondDeviceTensor) or (tensor.ndim == 0 and (by_value or func in _BY_INDEX)):
            continue
        raise LeftOnCpuError(
            f"{func}: expected all tensors on the second device, found one of shape {tuple(tensor.shape)} on the CPU"
        )
