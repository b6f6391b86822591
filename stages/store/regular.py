"""Regular files: opened without following links unless that is asked for, measured and hashed a chunk at a time."""

import errno
import hashlib
import os
import stat
from pathlib import Path

from schemas.errors import BadInput

CHUNK_BYTES = 2**20


def open_regular(path: Path, *, follow_links: bool = False) -> int:
    """A descriptor of a regular file, to be closed by the caller.

    Raises `BadInput` for links (unless they are followed), devices and pipes, before anything is read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        by_link = error.errno == errno.ELOOP
        raise BadInput(
            f"{path} cannot be {'opened as a regular file' if by_link else 'read'}",
            values={"expected": "a regular file", "found": os.strerror(error.errno or 0)},
            hint="copy it again, without links" if by_link else "give the path of a file that is there",
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput(
            f"{path} is not a regular file",
            hint="a folder, a pipe or a device cannot be read here: write its content to a file, and give that",
        )
    return descriptor


def file_size(path: Path, *, follow_links: bool = False) -> int:
    """Bytes of a regular file.  Raises `BadInput` as `open_regular` does."""
    descriptor = open_regular(path, follow_links=follow_links)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def file_digest(path: Path, *, follow_links: bool = False) -> str:
    """`sha256:<64 hex digits>` of a regular file of any size.  Raises `BadInput` as `open_regular` does."""
    digest = hashlib.sha256()
    with os.fdopen(open_regular(path, follow_links=follow_links), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
