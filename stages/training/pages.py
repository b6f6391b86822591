"""Tensors that are in memory only while they are in hand, layer by layer; meanwhile they are in an unnamed file.

A wide window has adapters, and moments of an optimizer, in many layers, but a step that streams needs those of one
layer at a time.  A tensor that is put away keeps its identity, its shape and its place in the graph, and no memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from stages.streaming.scratch_file import ScratchFile


@dataclass
class _Group:
    """The tensors of one layer: their places in the file, how often they are in hand, and whether they changed."""

    tensors: list[Tensor] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    held: int = 0
    changed: bool = False


class Pages:
    """Tensors by group.  `scratch`: the folder of the file; None: everything stays in memory, and nothing is done."""

    def __init__(self, scratch: Path | None) -> None:
        self._groups: dict[int, _Group] = {}
        self._file = ScratchFile(scratch) if scratch else None
        self._end = 0

    @property
    def puts_away(self) -> bool:
        """Whether anything is put away."""
        return self._file is not None

    def add(self, group: int, tensors: Sequence[Tensor]) -> None:
        """Put contiguous tensors away, as they are."""
        if self._file is None:
            return
        kept = self._groups.setdefault(group, _Group())
        for tensor in tensors:
            kept.tensors.append(tensor)
            kept.offsets.append(self._end)
            self._end += tensor.nbytes
            self._file.write(tensor, kept.offsets[-1])
            _put_away(tensor)

    @contextmanager
    def holding(self, *groups: int) -> Iterator[None]:
        """Have groups in memory; a group that is not known has nothing to hold.  What `changed` is written back."""
        known = [self._groups[group] for group in groups if group in self._groups]
        for group in known:
            if not group.held:
                self._bring(group)
            group.held += 1
        try:
            yield
        finally:
            for group in known:
                group.held -= 1
                if not group.held:
                    self._return(group)

    def changed(self, group: int) -> None:
        """The tensors of a group that is held have new values."""
        if group in self._groups:
            self._groups[group].changed = True

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def _bring(self, group: _Group) -> None:
        assert self._file is not None
        for tensor, offset in zip(group.tensors, group.offsets, strict=True):
            tensor.data = self._file.read(tensor.shape, tensor.dtype, offset)

    def _return(self, group: _Group) -> None:
        assert self._file is not None
        for tensor, offset in zip(group.tensors, group.offsets, strict=True):
            if group.changed:
                self._file.write(tensor, offset)
            _put_away(tensor)
        group.changed = False


def _put_away(tensor: Tensor) -> None:
    """Free a tensor's memory; its shape stays."""
    tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
