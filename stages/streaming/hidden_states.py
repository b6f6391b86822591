"""Hidden states of many texts between two layers: in memory, or in a file where they are large.

Layer-major order needs the output of layer l for every text before layer l+1 begins.  Only real tokens are kept
(texts have different lengths; padding is made anew for each batch), so neither memory nor disk pays for padding.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from stages.data.layout import Layout
from stages.weights.files import bytes_of

IN_MEMORY_LIMIT_BYTES = 64 * 2**20


class HiddenStates:
    """(tokens, D) for each text, `lengths` tokens long.  Starts undefined; filled batch by batch."""

    def __init__(
        self,
        lengths: Sequence[int],
        width: int,
        dtype: torch.dtype,
        *,
        scratch: Path,
        in_memory_limit_bytes: int = IN_MEMORY_LIMIT_BYTES,
    ) -> None:
        self.lengths = list(lengths)
        self.width = width
        self.dtype = dtype
        self._starts = [0]
        for length in self.lengths:
            self._starts.append(self._starts[-1] + length)
        self.total_bytes = self._starts[-1] * width * dtype.itemsize
        self._memory: Tensor | None = None
        self._file: int | None = None
        if self.total_bytes <= in_memory_limit_bytes:
            self._memory = torch.empty(self._starts[-1], width, dtype=dtype)
        else:
            self._file = anonymous_file(scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def gather(self, indices: Sequence[int], layout: Layout) -> Tensor:
        """(B, S, D) for the texts `indices` in their `layout`, zeros where padded."""
        batch = torch.zeros(layout.rows, layout.width, self.width, dtype=self.dtype)
        for (row, column), index in zip(layout.places, indices, strict=True):
            self._read(index, batch[row, column : column + self.lengths[index]])
        return batch

    def scatter(self, indices: Sequence[int], batch: Tensor, layout: Layout) -> None:
        """Keep the real tokens of `batch` (B, S, D) for the texts `indices`."""
        for (row, column), index in zip(layout.places, indices, strict=True):
            self._write(index, batch[row, column : column + self.lengths[index]])

    def text(self, index: int) -> Tensor:
        """(tokens, D) of one text."""
        tokens = torch.empty(self.lengths[index], self.width, dtype=self.dtype)
        self._read(index, tokens)
        return tokens

    def chunks(self) -> Iterator[memoryview]:
        """The bytes of all states, one text after the other, in pieces; `buffers` takes them back."""
        if self._memory is not None:
            yield bytes_of(self._memory)
            return
        for index in range(len(self.lengths)):
            yield bytes_of(self.text(index))

    def buffers(self) -> Iterator[memoryview]:
        """Room for the same bytes in the same order; what a piece holds when the next is asked for is kept."""
        if self._memory is not None:
            yield bytes_of(self._memory)
            return
        for index, length in enumerate(self.lengths):
            states = torch.empty(length, self.width, dtype=self.dtype)
            yield bytes_of(states)
            self._write(index, states)

    def _read(self, index: int, target: Tensor) -> None:
        start, stop = self._starts[index], self._starts[index + 1]
        if self._memory is not None:
            target.copy_(self._memory[start:stop])
            return
        assert self._file is not None
        view = bytes_of(target)
        count = os.preadv(self._file, [view], start * self.width * self.dtype.itemsize)
        assert count == len(view), "the scratch file ends early"

    def _write(self, index: int, source: Tensor) -> None:
        start, stop = self._starts[index], self._starts[index + 1]
        if self._memory is not None:
            self._memory[start:stop].copy_(source)
            return
        assert self._file is not None
        view = bytes_of(source.contiguous())
        written = 0
        while written < len(view):
            written += os.pwrite(self._file, view[written:], start * self.width * self.dtype.itemsize + written)


def anonymous_file(scratch: Path) -> int:
    """A file with no name: the kernel frees it however the process ends."""
    descriptor, name = tempfile.mkstemp(prefix=".hidden-states-", dir=scratch)
    os.unlink(name)  # noqa: PTH108 -- mkstemp gives a str
    return descriptor


class ScratchFile:
    """An unnamed file in a folder, made at the first write; tensors at offsets, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def write(self, tensor: Tensor, offset: int) -> None:
        """Put a contiguous tensor at an offset in bytes."""
        if self._descriptor is None:
            self._descriptor = anonymous_file(self._folder)
        view, written = bytes_of(tensor), 0
        while written < len(view):
            written += os.pwrite(self._descriptor, view[written:], offset + written)

    def read(self, shape: Sequence[int], dtype: torch.dtype, offset: int) -> Tensor:
        """A tensor that was put there."""
        assert self._descriptor is not None
        tensor = torch.empty(tuple(shape), dtype=dtype)
        view, filled = bytes_of(tensor), 0
        while filled < len(view):
            count = os.preadv(self._descriptor, [view[filled:]], offset + filled)
            assert count > 0, "the scratch file ends early"
            filled += count
        return tensor

    def close(self) -> None:
        """Give the file back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()
