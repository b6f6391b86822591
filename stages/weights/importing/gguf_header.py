"""The header of a GGUF file, walked before a library reads it: every count is compared with the bytes that are there.

The library believes the counts that a header gives, and loops as often.  Nothing is kept here but the place of the
next field (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
import os
import struct
from pathlib import Path
from typing import IO

from stages.store.regular import open_regular

MAGIC = b"GGUF"
MOST_FIELDS = 2**16
MOST_TENSORS = 2**16
MOST_ITEMS = 2**21  # of all arrays: a vocabulary, its scores and its merges, three times the largest
MOST_DIMENSIONS = 8
LEAST_BITS = 1  # of a value
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def check_header(path: Path) -> None:
    """Raises `ValueError` with the reason where the header cannot be that of this file, `BadInput` for no file."""
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        _Walk(file, os.fstat(file.fileno()).st_size).header()


class _Walk:
    """A place in a file of `size` bytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size
        self.order = "<"
        self.items = 0

    def header(self) -> None:
        """Walk to the end of the header."""
        if self.file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not a GGUF file")
        version = self.number(4)
        if version % 2**16 == 0:  # written by a machine of the other byte order
            self.order = ">"
        tensors, fields = self.number(8), self.number(8)
        if tensors > MOST_TENSORS or fields > MOST_FIELDS:
            raise ValueError(f"{tensors} tensors and {fields} fields")
        for _ in range(fields):
            self.string()
            self.value(self.number(4))
        for _ in range(tensors):
            self.tensor()

    def number(self, size: int) -> int:
        """An unsigned number of `size` bytes."""
        data = self.file.read(size)
        if len(data) != size:
            raise ValueError("the header is longer than the file")
        number: int = struct.unpack(self.order + {4: "I", 8: "Q"}[size], data)[0]
        return number

    def skip(self, size: int) -> None:
        """Over `size` bytes, which must be there."""
        if size > self.size - self.file.tell():
            raise ValueError("the header is longer than the file")
        self.file.seek(size, os.SEEK_CUR)

    def string(self) -> None:
        """A length and so many bytes."""
        self.skip(self.number(8))

    def value(self, kind: int) -> None:
        """A value of a field."""
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            self.array()
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind])
        else:
            raise ValueError(f"a field of the unknown kind {kind}")

    def array(self) -> None:
        """Items of one kind: numbers or strings, for no model has arrays of arrays."""
        kind, count = self.number(4), self.number(8)
        self.items += count
        if kind == ARRAY or self.items > MOST_ITEMS:
            raise ValueError("nested arrays" if kind == ARRAY else f"arrays of {self.items} items")
        if kind == STRING:
            for _ in range(count):
                self.string()
        else:
            self.skip(count * SCALAR_BYTES.get(kind, self.size + 1))

    def tensor(self) -> None:
        """Name, shape, kind and place of a tensor."""
        self.string()
        dimensions = self.number(4)
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        values = math.prod(self.number(8) for _ in range(dimensions))
        if values * LEAST_BITS > 8 * self.size:
            raise ValueError(f"a tensor of {values} values")
        self.skip(4 + 8)
