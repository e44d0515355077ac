"""Other arithmetics in which a module may legitimately be run: its results differ by roundings alone."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from p4q_edge.quant import AttentionProducts

_MATMULS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})
_SUMS = _MATMULS | frozenset(
    {F.linear, F.conv2d, torch.einsum, F.scaled_dot_product_attention, F.layer_norm}
    | {F.softmax, torch.softmax, Tensor.softmax, torch.linalg.vector_norm}
)
_OPERANDS = ("input", "x1", "weight", "other", "x2", "mat2", "bias")
"""Names that operands of linear layers and matrix products have in PyTorch, in their order."""
_OF_THE_GRID = frozenset(
    {torch.round, torch.clamp, Tensor.clamp, Tensor.__truediv__, Tensor.div, torch.div, Tensor.half, Tensor.float}
)


HALF_STEP = 2.0**-11
"""Largest relative rounding of a number to FP16."""


class Float64Sums(TorchFunctionMode):
    """Add every sum of products, norm and softmax in float64, and round the result to float32 once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _SUMS:
            return func(*args, **kwargs)
        result = func(*_each(_wider, args), **_each(_wider, kwargs))
        return _each(_narrower, result)


class PermutedSums(TorchFunctionMode):
    """Add the products of linear layers and matrix products in another order of their channels."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is F.linear or func in _MATMULS:
            # Models name their operands or do not.
            operands = (*args, *(named.pop(name) for name in _OPERANDS if name in named))
            if len(operands) > 1 and operands[0].ndim and operands[1].ndim > 1:
                return func(*self._permuted(func, *operands), **named)
        return func(*args, **(kwargs or {}))

    def _permuted(self, func: Any, first: Tensor, second: Tensor, *rest: Any) -> tuple[Any, ...]:
        if func is F.linear:
            order = self._order(second.shape[1])
            return first[..., order], second[:, order], *rest
        if first.ndim == 1:
            return first, second, *rest
        order = self._order(first.shape[-1])
        return first[..., order], second[..., order, :], *rest

    def _order(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)


class ScaledInput(TorchFunctionMode):
    """Multiply the pixels by a factor next to one, once they are floating-point numbers."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * self.factor if func is Tensor.float and args[0].dtype is torch.uint8 else result


class _Rounded(TorchFunctionMode):
    """Round every operand of a sum of products, and every result but those on an integer grid."""

    _paused = 0

    def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rounding = rounding

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or func in _OF_THE_GRID:
            return func(*args, **kwargs)
        if func in _SUMS:
            args, kwargs = _each(self.rounding, args), _each(self.rounding, kwargs)
        return _each(self.rounding, func(*args, **kwargs))


class HalfPrecision(_Rounded):
    """Round every operand of a sum of products, and every result but those on an integer grid, to FP16."""

    def __init__(self) -> None:
        super().__init__(_to_half_and_back)


class Bfloat16Remainder(_Rounded):
    """Round every operand of a sum of products, and every result, to bfloat16, but nothing within layers of integers.

    Sums of integers are exact, and what comes of them is rounded once. So are those of quantized attention products,
    whose operands stay on their grids: OpenVINO multiplies their integers.

    Args:
        layers: those that compute with integers.
        products: of attentions, likewise.
    """

    def __init__(self, layers: Iterable[nn.Module], products: Iterable[AttentionProducts] = ()) -> None:
        super().__init__(self._to_bfloat16)
        self.layers = tuple(layers)
        self.products = tuple(one for one in products if not one.float_prefix)
        self._hooks = ExitStack()
        self._on_grid: tuple[Tensor, ...] = ()

    def __enter__(self) -> Self:
        for layer in self.layers:
            for hook in (layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)):
                self._hooks.callback(hook.remove)
        for products in self.products:
            products.on_grid = partial(self._operands, products.on_grid)  # type: ignore[method-assign]
            products.softmax_on_grid = partial(self._softmax, products.softmax_on_grid)  # type: ignore[method-assign]
            for name in ("on_grid", "softmax_on_grid"):
                self._hooks.callback(delattr, products, name)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._hooks.close()
        self._paused, self._on_grid = 0, ()

    def _enter(self, layer: nn.Module, inputs: Any) -> None:
        self._paused += 1

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> Any:
        self._paused -= 1
        return _each(self.rounding, output)

    def _operands(self, on_grid: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        self._paused += 1
        self._on_grid = on_grid(*tensors)  # those of the attention before are used up
        self._paused -= 1
        return self._on_grid

    def _softmax(self, on_grid: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
        self._paused += 1
        weights = on_grid(weights)
        self._on_grid += (weights,)
        self._paused -= 1
        return weights

    def _to_bfloat16(self, x: Tensor) -> Tensor:
        """Round a tensor, unless it is a view of what lies on a grid."""
        if any(x.untyped_storage().data_ptr() == one.untyped_storage().data_ptr() for one in self._on_grid):
            return x
        return x.bfloat16().float() if x.dtype is torch.float32 else x


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(change, one) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_each(change, one) for one in value)
    return value


def _wider(x: Tensor) -> Tensor:
    return x.double() if x.dtype is torch.float32 else x


def _narrower(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.float64 else x


def _to_half_and_back(x: Tensor) -> Tensor:
    return x.half().float() if x.dtype is torch.float32 else x
