"""8-bit floats with their scales (DeepSeek's `weight_scale_inv`, others' `weight_scale`) as plain weights.

    w_ij = q_ij · s_⌊i/m⌋⌊j/n⌋      computed in float32, then rounded to the dtype of the result

One scale belongs to a tensor, a row, or a block of m × n values; the last blocks of a row or a column may be smaller.
Whatever a scale is named, it is multiplied, as in transformers' `Fp8Dequantize`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from schemas.errors import BadInput
from stages.weights.quantized import FP8, SCALES, SERVING, is_scale
from stages.weights.writer import Entry


def plain_entries(entries: Mapping[str, Entry], dtype: torch.dtype, block: tuple[int, int] | None) -> dict[str, Entry]:
    """All tensors of a checkpoint with its 8-bit floats in `dtype`; scales are left out.

    `block` is (m, n) where the configuration says so.  A checkpoint without any scale was cast, and is cast back.
    Raises `BadInput` where a scale is missing or does not fit its weight.
    """
    scales = {name: _scale_of(name, entries) for name, entry in entries.items() if _is_weight(name, entries)}
    lacking = [name for name, scale in scales.items() if scale is None]
    if lacking and len(lacking) < len(scales):
        raise BadInput(
            f"{lacking[0]} is stored as 8-bit floats without a scale",
            values={"expected": lacking[0] + SCALES[0], "lack a scale": f"{len(lacking)} of {len(scales)} weights"},
            hint="the weights are incomplete: get every file of the model again",
        )
    kept = {name: entry for name, entry in entries.items() if not is_scale(name, entries) and not SERVING.search(name)}
    return {
        name: _plain(entry, scales[name], dtype, block) if name in scales else entry for name, entry in kept.items()
    }


def _is_weight(name: str, entries: Mapping[str, Entry]) -> bool:
    return entries[name].dtype in FP8 and not is_scale(name, entries)


def _scale_of(name: str, entries: Mapping[str, Entry]) -> Entry | None:
    return next((entries[name + ending] for ending in SCALES if name + ending in entries), None)


def _plain(weight: Entry, scale: Entry | None, dtype: torch.dtype, block: tuple[int, int] | None) -> Entry:
    if scale is None:
        return replace(weight, dtype=dtype, blocks=lambda: (part.float().to(dtype) for part in weight.blocks()))
    rows, columns = weight.shape[-2:] if len(weight.shape) > 1 else (1, weight.values)
    grid = _grid(weight, scale)
    height, width = _block(weight, scale, (rows, columns), grid[-2:], block)

    def blocks() -> Iterator[Tensor]:
        scales = _values(scale).reshape(grid)
        start = 0
        for part in weight.blocks():
            place = torch.arange(start, start + len(part))
            matrix, row, column = place // (rows * columns), place // columns % rows, place % columns
            yield (part.float() * scales[matrix, row // height, column // width]).to(dtype)
            start += len(part)

    return replace(weight, dtype=dtype, blocks=blocks)


def _grid(weight: Entry, scale: Entry) -> tuple[int, int, int]:
    """The shape of the scales as (matrices, rows, columns) of blocks, with as many matrices as the weight has."""
    matrices = torch.Size(weight.shape[:-2]).numel()
    if scale.values == 1 and matrices == 1:
        return (1, 1, 1)
    if len(scale.shape) == 1 and matrices == 1:
        return (1, scale.values, 1)
    if len(scale.shape) == len(weight.shape) > 1 and scale.shape[:-2] == weight.shape[:-2]:
        return (matrices, scale.shape[-2], scale.shape[-1])
    raise _does_not_fit(weight, scale)


def _block(
    weight: Entry, scale: Entry, shape: tuple[int, int], grid: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns of a block: as the configuration says where that fits, else all the same size."""
    if block is not None and all(-(-size // of) == count for size, of, count in zip(shape, block, grid, strict=True)):
        return block
    if any(count < 1 or size % count for size, count in zip(shape, grid, strict=True)):
        raise _does_not_fit(weight, scale)
    return shape[0] // grid[0], shape[1] // grid[1]


def _values(scale: Entry) -> Tensor:
    """All scales, float32.  Bytes are exponents: 2^(byte - 127), as MXFP8 stores them."""
    stored = torch.cat(list(scale.blocks()))
    return (stored.float() - 127).exp2() if stored.dtype == torch.uint8 else stored.float()


def _does_not_fit(weight: Entry, scale: Entry) -> BadInput:
    return BadInput(
        f"the scales of {weight.name} do not fit it",
        values={"weight": list(weight.shape), "scales": list(scale.shape)},
        hint="config.json and the weights must come from the same model: get every file of it again",
    )
