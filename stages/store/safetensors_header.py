"""The header of a safetensors file: its length in eight bytes, then JSON with dtype, shape and place of each tensor.

Two readers for two kinds of files.  A base model comes from anywhere and may be laid out in any way that the format
allows: `read_header` parses its header and checks it against the file.  An artifact comes from a stranger, and its
manifest leaves only one possible layout: `has_header` compares bytes and parses nothing.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from stages.process.confined import limited_memory

HEADER_LIMIT_BYTES = 100 * 2**20  # the safetensors library's own limit
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
ALIGNMENT = 8  # bytes: the header is padded, so that values are aligned


class UnknownDtype(ValueError):
    """A tensor of a dtype that is not in ITEM_BYTES: less than a byte each, or newer than this program."""


class TensorSpec(NamedTuple):
    """A tensor that a file holds."""

    name: str
    dtype: str  # one of ITEM_BYTES
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]  # of Python's integers: a shape may claim anything


class Place(NamedTuple):
    """Where in its file a tensor's values are."""

    spec: TensorSpec
    offset: int  # bytes from the start of the file


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the values of tensors that follow each other without gaps, in the order given."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for spec in specs:
        start, end = end, end + spec.size_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def has_header(descriptor: int, expected: bytes) -> bool:
    """Whether an open file starts with exactly these bytes."""
    return os.pread(descriptor, len(expected), 0) == expected


def read_header(descriptor: int) -> list[Place]:
    """Every tensor of an open file, in the order of its header.

    Raises `ValueError` with the reason where the header cannot be read, a tensor is not inside the file, or the file
    goes on behind the last one, and `UnknownDtype`.
    """
    file_bytes = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if file_bytes < 8 or length > min(HEADER_LIMIT_BYTES, file_bytes - 8):
        raise ValueError("the header is longer than the file")
    try:
        with limited_memory():
            header = json.loads(os.pread(descriptor, length, 8))
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        found = [_parse_entry(name, entry, 8 + length) for name, entry in entries]
    except UnknownDtype:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        raise ValueError("the header cannot be read") from None
    for place, end in found:
        if place.spec.size_bytes != end - place.offset or end > file_bytes:
            raise ValueError(f"tensor {place.spec.name} is not inside it")
    if max((end for _, end in found), default=8 + length) != file_bytes:
        raise ValueError("there is more in it than its tensors")
    return [place for place, _ in found]


def _parse_entry(name: str, entry: Mapping[str, Any], values_start: int) -> tuple[Place, int]:
    """A tensor's place, and where it ends."""
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError
    if entry["dtype"] not in ITEM_BYTES:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]{1,15}", entry["dtype"]):
            raise ValueError
        raise UnknownDtype(f"{name} is stored as {entry['dtype']}")
    return Place(TensorSpec(name, entry["dtype"], shape), values_start + start), values_start + end
