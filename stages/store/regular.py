"""Regular files: opened without following links unless that is asked for, read whole within a bound, hashed in chunks.

Whatever is not streamed is read here and nowhere else (a test looks for it): a file of terabytes costs nothing.
"""

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


def read_regular(path: Path, *, at_most: int, follow_links: bool = False) -> bytes:
    """The bytes of a regular file of at most `at_most` bytes; of a larger one nothing is read.

    Raises `BadInput`, also as `open_regular` does.
    """
    with os.fdopen(open_regular(path, follow_links=follow_links), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, at_most=at_most)
        data = file.read(size + 1)  # read() allocates what it is asked for
        if len(data) > size:  # it grew, or is one of those that say that they have no size
            data += file.read(at_most + 1 - len(data))
    check_size(path, len(data), at_most=at_most)
    return data


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file, or all of a smaller one.  Raises `BadInput` as `open_regular` does."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(count)


def holds(path: Path, data: bytes) -> bool:
    """Whether a file holds these very bytes, links followed.  Raises `BadInput` as `open_regular` does."""
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        return file.read(len(data) + 1) == data


def check_size(path: Path, size: int, *, at_most: int) -> None:
    """Check that a file is no larger than files of its kind may be.  Raises `BadInput` with both sizes."""
    if size > at_most:
        raise BadInput(
            f"{path} is too large for a file of its kind",
            values={"at most": f"{at_most} bytes", "found": f"{size} bytes"},
            hint="it was damaged or is another file: copy it again, or remove it",
        )


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
