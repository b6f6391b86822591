"""A temporary file without a name: tensors at offsets, and nothing is left however the process ends."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, ClassVar

import torch
from torch import Tensor

from stages.weights.files import bytes_of


class ScratchFile:
    """An unnamed file in a folder, made at the first write, and the folder with it.

    `scratch_bytes_written` counts the bytes that this process has written to all of them.
    """

    scratch_bytes_written: ClassVar[int] = 0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def write(self, tensor: Tensor, offset: int) -> None:
        """Put a contiguous tensor at an offset in bytes."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115 -- it is open until `close`
        view, written = bytes_of(tensor), 0
        while written < len(view):
            written += os.pwrite(self._file.fileno(), view[written:], offset + written)
        ScratchFile.scratch_bytes_written += written

    def read(self, shape: Sequence[int], dtype: torch.dtype, offset: int) -> Tensor:
        """A tensor that was put there."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        self.read_into(tensor, offset)
        return tensor

    def read_into(self, tensor: Tensor, offset: int) -> None:
        """Fill a contiguous tensor with what was put at an offset in bytes."""
        assert self._file is not None
        view, filled = bytes_of(tensor), 0
        while filled < len(view):
            count = os.preadv(self._file.fileno(), [view[filled:]], offset + filled)
            assert count > 0, "the scratch file ends early"
            filled += count

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()
