"""Hidden states of many texts between two layers: in memory, or in a file where they are large.

Layer-major order needs the output of layer l for every text before layer l+1 begins.  Only real tokens are kept
(texts have different lengths; padding is made anew for each batch), so neither memory nor disk pays for padding.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from stages.data.layout import Layout
from stages.streaming.scratch_file import ScratchFile
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
        self._file: ScratchFile | None = None
        if self.total_bytes <= in_memory_limit_bytes:
            self._memory = torch.empty(self._starts[-1], width, dtype=dtype)
        else:
            self._file = ScratchFile(scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory = None
        if self._file is not None:
            self._file.close()
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
        else:
            assert self._file is not None
            self._file.read_into(target, start * self.width * self.dtype.itemsize)

    def _write(self, index: int, source: Tensor) -> None:
        start, stop = self._starts[index], self._starts[index + 1]
        if self._memory is not None:
            self._memory[start:stop].copy_(source)
        else:
            assert self._file is not None
            self._file.write(source.contiguous(), start * self.width * self.dtype.itemsize)
