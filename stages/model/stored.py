"""Products with a frozen matrix that stays in memory as it is stored, and computes in another dtype.

Models are published in bfloat16, which most processors do not multiply: there torch emulates it, on one thread.  So a
matrix keeps its stored dtype, and a product converts it to the dtype of the hidden states a block at a time:

    y = x Wᵀ + b     forwards:  a block of rows of W gives a block of columns of y
    g_x = g_y W      backwards: a block of columns of W gives a block of columns of g_x

No sum is split, so the result is what the whole matrix gives once it is converted: to the bit where kernels sum alike
whatever the width of a block (ADR 9 says where not).  Nothing is kept for the backward pass but the stored matrix.

Shapes: T tokens (in any leading dimensions), K inputs, N outputs.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.pytorch_utils import Conv1D

BLOCK_BYTES = 4 * 2**20  # of one converted block: it fits a processor's cache, and a product is not slower by blocks
BLOCK_MULTIPLE = 64  # rows or columns of a block, so that kernels take the same path as for the whole


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, (…, T, N), in the dtype of `x_TK`, whatever the dtype of the frozen `weight_NK`.

    Differentiable in `x_TK` only.
    """
    if weight_NK.dtype == x_TK.dtype:
        return F.linear(x_TK, weight_NK, bias_N)
    if x_TK.requires_grad and torch.is_grad_enabled():
        result: Tensor = _Linear.apply(x_TK, weight_NK, bias_N)  # type: ignore[no-untyped-call]
        return result
    return _forwards(x_TK, weight_NK, bias_N)


def times(gradient_TN: Tensor, weight_NK: Tensor) -> Tensor:
    """g W, (T, K), in the dtype of `gradient_TN`, whatever the dtype of `weight_NK`."""
    if weight_NK.dtype == gradient_TN.dtype:
        return gradient_TN @ weight_NK
    outputs, inputs = weight_NK.shape
    width = _block_size(outputs, inputs, gradient_TN.dtype)
    if width >= inputs:
        return gradient_TN @ _converted(weight_NK, gradient_TN.dtype)
    result_TK = gradient_TN.new_empty(len(gradient_TN), inputs)
    for part in _blocks(inputs, width):
        torch.mm(gradient_TN, _converted(weight_NK[:, part], gradient_TN.dtype), out=result_TK[:, part])
    return result_TK


class StoredMatrix(Tensor):
    """A frozen matrix that says it has the dtype `compute` and keeps the one that it is stored in.

    `F.linear` and `Conv1D` take it by blocks; any other operation sees it converted, whole.
    """

    compute: torch.dtype

    @staticmethod
    def __new__(cls, stored: Tensor, compute: torch.dtype) -> "StoredMatrix":
        """`stored`, a matrix of any floating dtype, as one of dtype `compute`.  Shares its memory."""
        matrix: StoredMatrix = torch.Tensor._make_subclass(cls, stored)
        matrix.compute = compute
        return matrix

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The dtype that it computes in."""
        return self.compute

    def stored(self) -> Tensor:
        """The matrix as it is in memory."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Products by blocks, shapes as they are, everything else on the converted matrix."""
        kwargs = kwargs or {}
        if function is F.linear and isinstance(args[1], cls):
            return linear(args[0], args[1].stored(), *args[2:], **kwargs)
        if function is torch.addmm and len(args) == 3 and isinstance(args[2], cls) and not kwargs:  # Conv1D
            return linear(args[1], args[2].stored().t(), args[0])
        with torch._C.DisableTorchFunctionSubclass():
            if function in _SHAPE_OF:
                return function(*args, **kwargs)
            return function(*tree_map_only(cls, cls.whole, args), **tree_map_only(cls, cls.whole, kwargs))

    def whole(self) -> Tensor:
        """The converted matrix."""
        return self.stored().to(self.compute)


# Getters and methods that need no values.
_SHAPE_OF = frozenset(
    {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "device", "requires_grad", "is_meta")}
    | {Tensor.size, Tensor.dim, Tensor.numel}
)


class StoredMatrices:
    """The matrices of a module's linear layers, which may stay as they are stored."""

    def __init__(self, module: nn.Module) -> None:
        self.names = frozenset(
            f"{path}.weight" if path else "weight"
            for path, inner in module.named_modules(remove_duplicate=False)
            if isinstance(inner, nn.Linear | Conv1D)
        )

    def computing(self, weights: Mapping[str, Tensor], compute: torch.dtype) -> Mapping[str, Tensor]:
        """`weights` with those of another dtype than `compute` wrapped."""
        other = {name for name in self.names if name in weights and weights[name].dtype != compute}
        if not other:
            return weights
        return {name: StoredMatrix(value, compute) if name in other else value for name, value in weights.items()}


class _Linear(torch.autograd.Function):
    """`linear` where a gradient flows to its input."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.weight_NK = weight_NK  # frozen, so not an autograd variable
        return _forwards(x_TK, weight_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_TN,) = gradients
        weight_NK: Tensor = ctx.weight_NK
        flat = times(gradient_TN.reshape(-1, gradient_TN.shape[-1]), weight_NK)
        return flat.view(*gradient_TN.shape[:-1], weight_NK.shape[1]), None, None


def block_bytes(outputs: int, inputs: int, dtype: torch.dtype) -> int:
    """Bytes of the largest converted block of a matrix (N, K), forwards or backwards."""
    rows, columns = _block_size(inputs, outputs, dtype), _block_size(outputs, inputs, dtype)
    return max(rows * inputs, columns * outputs) * dtype.itemsize


def _forwards(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    outputs, inputs = weight_NK.shape
    height = _block_size(inputs, outputs, x_TK.dtype)
    if height >= outputs:
        return F.linear(x_TK, _converted(weight_NK, x_TK.dtype), bias_N)
    result_TN = x_TK.new_empty(*x_TK.shape[:-1], outputs)
    for part in _blocks(outputs, height):
        bias = bias_N[part] if bias_N is not None else None
        result_TN[..., part] = F.linear(x_TK, _converted(weight_NK[part], x_TK.dtype), bias)
    return result_TN


def _converted(block: Tensor, dtype: torch.dtype) -> Tensor:
    """The block in `dtype`, dense, in the memory order of the matrix that it is part of."""
    if block.stride(-1) == 1:
        return block.to(dtype, memory_format=torch.contiguous_format)
    return block.t().to(dtype, memory_format=torch.contiguous_format).t()


def _block_size(across: int, along: int, dtype: torch.dtype) -> int:
    """How many rows (or columns) of `across` values each fill a block; at most `along`."""
    fitting = BLOCK_BYTES // (across * dtype.itemsize) // BLOCK_MULTIPLE * BLOCK_MULTIPLE
    return min(max(BLOCK_MULTIPLE, fitting), along)


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `count`; less than `BLOCK_MULTIPLE` at the end belongs to the slice before.

    A kernel takes another path for a narrow block, and another path rounds otherwise.
    """
    edges = [*range(0, count, size), count]
    if len(edges) > 2 and count - edges[-2] < BLOCK_MULTIPLE:
        del edges[-2]
    return (slice(first, last) for first, last in pairwise(edges))
