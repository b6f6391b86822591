"""Safetensors files written tensor by tensor, a block at a time, in constant memory.

An `Entry` describes a tensor and yields its values in blocks, from any source: a random generator, another checkpoint,
a pickle that is mapped into memory.  A model is one file, or several with an index.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from schemas.errors import BadInput
from stages.store.safetensors_header import TensorSpec, encode_header
from stages.weights.files import DTYPES, StoredTensor, WeightFiles, bytes_of

BLOCK_VALUES = 2**18
SHARD_BYTES = 2 * 2**30
STORED_AS = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.  `blocks` yields its values in order, as flat tensors of `dtype`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def values(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.values * self.dtype.itemsize

    def as_dtype(self, dtype: torch.dtype | None) -> "Entry":
        """The same in `dtype`; integers are not converted, and nothing is where `dtype` is None.

        Writing raises `BadInput` where a value is too large for `dtype`.
        """
        if dtype is None or dtype == self.dtype or not self.dtype.is_floating_point:
            return self
        return replace(
            self, dtype=dtype, blocks=lambda: (_converted(block, dtype, self.name) for block in self.blocks())
        )

    def equals(self, other: "Entry") -> bool:
        """Whether shape, dtype and every value are the same."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        return all(torch.equal(mine, its) for mine, its in zip(self.blocks(), other.blocks(), strict=True))


def entry_of(name: str, tensor: Tensor) -> Entry:
    """An entry of a tensor in memory, or mapped there; one that is not contiguous is copied when it is written."""

    def blocks() -> Iterator[Tensor]:
        flat = tensor.detach().reshape(-1)
        for start in range(0, len(flat), BLOCK_VALUES):
            yield flat[start : start + BLOCK_VALUES]

    return Entry(name, tensor.dtype, tuple(tensor.shape), blocks)


def entry_on_disk(checkpoint: WeightFiles, tensor: StoredTensor) -> Entry:
    """An entry of a tensor in another checkpoint, which must stay open until it is written."""

    def blocks() -> Iterator[Tensor]:
        size = BLOCK_VALUES * tensor.dtype.itemsize
        for start in range(0, tensor.size, size):
            data = bytearray(min(size, tensor.size - start))
            checkpoint.read_into(tensor, memoryview(data), start=start)
            yield torch.frombuffer(data, dtype=tensor.dtype)

    return Entry(tensor.name, tensor.dtype, tensor.shape, blocks)


def group(entries: Iterable[Entry], *, limit_bytes: int = SHARD_BYTES) -> list[list[Entry]]:
    """Entries in order, in groups of at most `limit_bytes` but at least one entry."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.size > limit_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.size
    return shards


def shard_name(index: int, count: int) -> str:
    """transformers' name of file `index` (from 0) of `count`."""
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_shard(path: Path, entries: Sequence[Entry]) -> None:
    """Write one safetensors file, inside a directory of `complete_directory`."""
    specs = [TensorSpec(entry.name, STORED_AS[entry.dtype], entry.shape) for entry in entries]
    with path.open("xb") as file:
        file.write(encode_header(specs, metadata={"format": "pt"}))
        for entry in entries:
            written = sum(file.write(bytes_of(block)) for block in entry.blocks())
            assert written == entry.size, entry.name


def write_index(directory: Path, places: Mapping[str, str], total_bytes: int) -> None:
    """Write which file each tensor is in, if there is more than one file."""
    if len(set(places.values())) > 1:
        content = {"metadata": {"total_size": total_bytes}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(content, indent=2) + "\n")


def _converted(block: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    converted = block.to(dtype)
    if bool((converted.isinf() & block.isfinite()).any()):
        raise BadInput(
            f"tensor {name} holds a value too large for {str(dtype).removeprefix('torch.')}",
            values={"largest possible": torch.finfo(dtype).max, "found": float(block.abs().max())},
            hint="use --dtype bfloat16 or float32",
        )
    return converted
