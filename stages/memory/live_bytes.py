"""Count the bytes of meta tensors: the peak that a forward and backward pass would hold."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.process.footprint import execute_meta_kernels

# A library copies the factors of a product in the order in which it reads them: 384 values of each column of the result
# at a time, in at most 16 MiB, which it keeps.  MKL with AVX-512 copies most (`tests/process/test_footprint.py`).
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
PACKED_BYTES_PER_COLUMN, PACKED_BYTES = 384 * 4, 16 * 2**20


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made while the mode is active and not yet freed: `now`, and at most (`peak`).

    Storages of the `known` tensors do not count; the widest product's packed factors do, from then on.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        execute_meta_kernels()
        self.now: int = 0
        self.peak: int = 0
        self.packed: int = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._grouped_mm.default and args[0].is_meta:
            # Experts.  The kernels take every dtype; on the meta device only bfloat16 is accepted.
            result = torch.empty(args[0].shape[0], args[1].shape[-1], dtype=args[0].dtype, device="meta")
        else:
            result = function(*args, **(kwargs or {}))
        if function in PRODUCTS:
            self._pack(result.shape[-1])
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _pack(self, columns: int) -> None:
        wider = min(columns * PACKED_BYTES_PER_COLUMN, PACKED_BYTES) - self.packed
        if wider > 0:
            self.packed += wider
            self.now += wider

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention as CPUs and GPUs run it, without an (S, S) matrix; the meta device would make one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention and args[0].is_meta:
            return _Attention.apply(*args[:3])
        return function(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Shapes of fused attention: query (…, S, E), key (…, T, E), value (…, T, W) -> (…, S, W)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device="meta")
        normaliser = torch.empty(query.shape[:-1], dtype=torch.float32, device="meta")
        ctx.save_for_backward(query, key, value, output, normaliser)
        return output

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_rest = ctx.saved_tensors
        return meta_like(query), meta_like(key), meta_like(value)


def meta_like(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape and dtype.  (On the meta device `empty_like` and `sum` would import sympy.)"""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
