"""Tar archives in one canonical form: names and sizes decide every byte that is not content.

Mode 0644, no owner, no time, plain files only, POSIX ustar, no padding beyond the two blocks that end an archive.  So
a header is never parsed: the reader builds the one it expects and compares.
"""

import re
import tarfile

BLOCK_BYTES = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK_BYTES)
SIZE_FIELD = slice(124, 136)


def header(name: str, size_bytes: int) -> bytes:
    """The block before a file's content."""
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    member.mode = 0o644
    return member.tobuf(format=tarfile.USTAR_FORMAT, encoding="ascii")


def padding(size_bytes: int) -> bytes:
    """The zeros after a file's content."""
    return bytes(-size_bytes % BLOCK_BYTES)


def member_bytes(size_bytes: int) -> int:
    """Bytes that a file takes in the archive: header, content, padding."""
    return BLOCK_BYTES + size_bytes + -size_bytes % BLOCK_BYTES


def claimed_size(block: bytes, name: str) -> int | None:
    """The size that a header gives to `name`; None where it is not the canonical header of that file."""
    digits = re.fullmatch(rb"([0-7]{11})\0", block[SIZE_FIELD])
    if digits is None:
        return None
    size = int(digits[1], 8)
    return size if block == header(name, size) else None
