"""Products with a frozen matrix that stays in memory as it is stored, and computes in another dtype.

Models are published in bfloat16, which most processors do not multiply: there torch emulates it, on one thread.  So a
matrix keeps its stored dtype, and a product converts it to the dtype of the hidden states a block at a time:

    y = x Wᵀ + b     forwards:  a block of rows of W gives a block of columns of y
    g_x = g_y W      backwards: a block of columns of W gives a block of columns of g_x

No sum is split, so the result is what the whole matrix gives once it is converted: to the bit where kernels sum alike
whatever the width of a block (ADR 9 says where not).  A library shares a product among its threads, and with too
little for each it splits sums; so a block grows with the plan's number of threads.  Nothing is kept for the backward
pass but the stored matrix.

Shapes: T tokens (in any leading dimensions), K inputs, N outputs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.pytorch_utils import Conv1D

BLOCK_BYTES = 4 * 2**20  # of one converted block: it fits a processor's cache, and a product is not slower by blocks
IN_PLACE = frozenset(
    {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"}
    | {"__iand__", "__ior__", "__ixor__"}
)
BLOCK_MULTIPLE = 64  # rows or columns of a block for each thread, so that kernels take the same path as for the whole


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, *, threads: int) -> Tensor:
    """x Wᵀ + b, (…, T, N), in the dtype of `x_TK`, whatever the dtype of the frozen `weight_NK`.

    Differentiable in `x_TK` and `bias_N`.  `threads`: as many as the plan says.
    """
    if weight_NK.dtype == x_TK.dtype:
        return F.linear(x_TK, weight_NK, bias_N)
    differentiable = x_TK.requires_grad or (bias_N is not None and bias_N.requires_grad)
    if differentiable and torch.is_grad_enabled():
        result: Tensor = _Linear.apply(x_TK, weight_NK, bias_N, threads)  # type: ignore[no-untyped-call]
        return result
    return _forwards(x_TK, weight_NK, bias_N, threads)


def times(gradient_TN: Tensor, weight_NK: Tensor, *, threads: int) -> Tensor:
    """g W, (T, K), in the dtype of `gradient_TN`, whatever the dtype of `weight_NK`."""
    if weight_NK.dtype == gradient_TN.dtype:
        return gradient_TN @ weight_NK
    outputs, inputs = weight_NK.shape
    width = _block_size(outputs, inputs, gradient_TN.dtype, threads)
    if width >= inputs:
        return gradient_TN @ _converted(weight_NK, gradient_TN.dtype)
    result_TK = gradient_TN.new_empty(len(gradient_TN), inputs)
    for part in _blocks(inputs, width, threads):
        torch.mm(gradient_TN, _converted(weight_NK[:, part], gradient_TN.dtype), out=result_TK[:, part])
    return result_TK


class StoredMatrix(Tensor):
    """A frozen matrix that says it has the dtype `compute` and keeps the one that it is stored in.

    `F.linear` and `Conv1D` take it by blocks; any other operation sees it converted, whole.
    """

    compute: torch.dtype
    threads: int

    @staticmethod
    def __new__(cls, stored: Tensor, compute: torch.dtype, threads: int) -> "StoredMatrix":
        """`stored`, a frozen matrix of any floating dtype, as one of dtype `compute`.  Shares its memory."""
        if stored.requires_grad or not stored.is_floating_point():
            raise ValueError("only a frozen matrix of floating-point numbers stays as it is stored")
        matrix: StoredMatrix = torch.Tensor._make_subclass(cls, stored)
        matrix.compute, matrix.threads = compute, threads
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
        """Products by blocks, shapes as they are, everything else on the converted matrix.

        Raises `RuntimeError` for an operation that would change the matrix: it would change a copy.
        """
        kwargs = kwargs or {}
        if function is F.linear:
            x_TK, matrix, bias_N = _of_linear(*args, **kwargs)
            if isinstance(matrix, cls) and not isinstance(x_TK, cls):
                return linear(x_TK, matrix.stored(), bias_N, threads=matrix.threads)
        if function is torch.addmm and len(args) == 3 and not kwargs:  # Conv1D
            bias_N, x_TK, matrix = args
            if isinstance(matrix, cls) and not isinstance(x_TK, cls) and bias_N.shape == matrix.shape[1:]:
                return linear(x_TK, matrix.stored().t(), bias_N, threads=matrix.threads)
        with torch._C.DisableTorchFunctionSubclass():
            if function in _SHAPE_OF:
                return function(*args, **kwargs)
            target = args[0] if args else kwargs.get("input")
            if isinstance(kwargs.get("out"), cls) or (_is_in_place(function) and isinstance(target, cls)):
                raise RuntimeError(f"{function.__name__} would change a frozen matrix")
            return function(*tree_map_only(cls, cls.whole, args), **tree_map_only(cls, cls.whole, kwargs))

    def whole(self) -> Tensor:
        """The converted matrix."""
        return self.stored().to(self.compute)


# Getters and methods that need no values.
_SHAPE_OF = frozenset(
    {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "device", "requires_grad", "is_meta")}
    | {Tensor.size, Tensor.dim, Tensor.numel}
)


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Arguments of `F.linear`, by position or by torch's names."""
    return input, weight, bias


def _is_in_place(function: Callable[..., Any]) -> bool:
    """Whether a function of torch changes its first argument, by torch's convention for names."""
    name = getattr(function, "__name__", "")
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))


class StoredMatrices:
    """The matrices of a module's linear layers, which may stay as they are stored."""

    def __init__(self, module: nn.Module) -> None:
        self.names = frozenset(
            f"{path}.weight" if path else "weight"
            for path, inner in module.named_modules(remove_duplicate=False)
            if isinstance(inner, nn.Linear | Conv1D)
        )

    def computing(self, weights: Mapping[str, Tensor], compute: torch.dtype, threads: int) -> Mapping[str, Tensor]:
        """`weights` with those of another dtype than `compute` wrapped; what trains is converted, differentiably."""
        other = {name for name in self.names if name in weights and weights[name].dtype != compute}
        if not other:
            return weights

        def converted(value: Tensor) -> Tensor:
            return value.to(compute) if value.requires_grad else StoredMatrix(value, compute, threads)

        return {name: converted(value) if name in other else value for name, value in weights.items()}


class _Linear(torch.autograd.Function):
    """`linear` where a gradient flows to its input or its bias."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, threads: int) -> Tensor:
        ctx.weight_NK, ctx.threads = weight_NK, threads  # frozen, so not an autograd variable
        return _forwards(x_TK, weight_NK, bias_N, threads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        (gradient_TN,) = gradients
        leading, (outputs, inputs) = gradient_TN.shape[:-1], ctx.weight_NK.shape
        flat_TN = gradient_TN.reshape(math.prod(leading), outputs)
        to_input = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = times(flat_TN, ctx.weight_NK, threads=ctx.threads).view(*leading, inputs)
        if ctx.needs_input_grad[2]:
            to_bias = flat_TN.sum(0)
        return to_input, None, to_bias, None


def block_bytes(outputs: int, inputs: int, dtype: torch.dtype, threads: int) -> int:
    """Bytes of the largest converted block of a matrix (N, K), forwards or backwards."""
    rows = _largest(outputs, _block_size(inputs, outputs, dtype, threads), threads)
    columns = _largest(inputs, _block_size(outputs, inputs, dtype, threads), threads)
    return max(rows * inputs, columns * outputs) * dtype.itemsize


def _largest(count: int, size: int, threads: int) -> int:
    """Rows or columns of the largest block."""
    return max((part.stop - part.start for part in _blocks(count, size, threads)), default=0) if size else 0


def _forwards(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, threads: int) -> Tensor:
    outputs, inputs = weight_NK.shape
    height = _block_size(inputs, outputs, x_TK.dtype, threads)
    if height >= outputs:
        return F.linear(x_TK, _converted(weight_NK, x_TK.dtype), bias_N)
    result_TN = x_TK.new_empty(*x_TK.shape[:-1], outputs)
    for part in _blocks(outputs, height, threads):
        bias = bias_N[part] if bias_N is not None else None
        result_TN[..., part] = F.linear(x_TK, _converted(weight_NK[part], x_TK.dtype), bias)
    return result_TN


def _converted(block: Tensor, dtype: torch.dtype) -> Tensor:
    """The block in `dtype`, dense, in the memory order of the matrix that it is part of."""
    if block.stride(-1) == 1:
        return block.to(dtype, memory_format=torch.contiguous_format)
    return block.t().to(dtype, memory_format=torch.contiguous_format).t()


def _block_size(across: int, along: int, dtype: torch.dtype, threads: int) -> int:
    """How many rows (or columns) of `across` values each fill a block; at most `along`."""
    least = BLOCK_MULTIPLE * threads
    fitting = BLOCK_BYTES // (max(across, 1) * dtype.itemsize) // least * least
    return min(max(least, fitting), along)


def _blocks(count: int, size: int, threads: int) -> Iterator[slice]:
    """Slices of `size` that cover `count`; what is less than a least block at the end belongs to the slice before.

    A kernel takes another path for a narrow block, and another path rounds otherwise.
    """
    edges = [*range(0, count, size), count]
    if len(edges) > 2 and count - edges[-2] < BLOCK_MULTIPLE * threads:
        del edges[-2]
    return (slice(first, last) for first, last in pairwise(edges))
