"""The file of an offline run of W&B: records in LevelDB's log format, after a header of W&B's own.

wandb has no reader for it in Python.  A log is blocks of 32 KiB; a record, or a part of one, has a header of checksum,
length and type, and never crosses a block (LevelDB, doc/log_format.md).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from stages.store.foreign import read_document

HEADER = 7  # bytes at the beginning of the file: `:W&B`, a magic number, a version
BLOCK = 2**15
PART = struct.Struct("<IHB")  # CRC, length, type
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[bytes]:
    """Every whole record; what a killed process left of the last one is left out.  Raises `BadInput`."""
    data = read_document(path)
    offset, parts = HEADER, b""
    while offset < len(data):
        if BLOCK - offset % BLOCK < PART.size:
            offset += BLOCK - offset % BLOCK
        if len(data) - offset < PART.size:
            return
        _, length, kind = PART.unpack_from(data, offset)
        offset += PART.size
        part = data[offset : offset + length]
        if len(part) < length:
            return
        parts = part if kind in (WHOLE, FIRST) else parts + part
        offset += length
        if kind in (WHOLE, LAST):
            yield parts
