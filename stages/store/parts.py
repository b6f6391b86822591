"""A bundle's bytes, in one file or split into parts: FILE.001, FILE.002, …  `cat FILE.???` is the bundle.

Parts are plain slices, so that any tool can join them.  The index in the first one has the SHA-256 of each, so a part
that was altered, swapped or belongs to another bundle is refused by name.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.bundle import MOST_PARTS
from schemas.errors import BadInput, NotTrusted
from stages.store.regular import open_regular

CHUNK_BYTES = 2**20
NUMBERED = re.compile(r"(.+)\.\d{3}")


@dataclass(frozen=True)
class Part:
    """A file with a slice of a bundle; `sha256` is empty where it is the whole bundle."""

    path: Path
    size_bytes: int
    sha256: str


def part_path(file: Path, number: int) -> Path:
    """FILE.001 for number 1."""
    return file.with_name(f"{file.name}.{number:03d}")


def whole_path(path: Path) -> Path:
    """FILE for FILE.001, and FILE itself for FILE."""
    numbered = NUMBERED.fullmatch(path.name)
    return path.with_name(numbered[1]) if numbered else path


def first_path(path: Path) -> Path:
    """The file that a bundle starts in, whichever of its names was given."""
    first = part_path(whole_path(path), 1)
    if whole_path(path) == path and (os.path.lexists(path) or not os.path.lexists(first)):
        return path
    return first


def outputs(file: Path) -> list[Path]:
    """Those of FILE, FILE.001, FILE.002, … that exist."""
    names = [file, *(part_path(file, number) for number in range(1, MOST_PARTS + 1))]
    return [path for path in names if os.path.lexists(path)]


def cut(chunks: Iterable[bytes], part_bytes: int, start: int = 0) -> Iterator[tuple[int, memoryview]]:
    """Pieces of chunks, each with the number of its part, from 1.  `start`: bytes before the first chunk."""
    position = start
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            number, offset = divmod(position, part_bytes)
            piece = rest[: part_bytes - offset]
            yield number + 1, piece
            position += len(piece)
            rest = rest[len(piece) :]


def check_sizes(parts: Sequence[Part]) -> None:
    """Check that every part is a regular file of the right size.  Raises `BadInput`, `NotTrusted` with its name."""
    for part in parts:
        if not os.path.lexists(part.path):
            raise BadInput(
                f"{part.path} is missing",
                values={"expected": f"{len(parts)} parts in this folder"},
                hint="copy every part of the bundle here",
            )
        os.close(_open_sized(part))


class PartReader:
    """Reads a bundle from its first byte to its last, one part at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_regular(path)
        self._left = os.fstat(self._descriptor).st_size
        self._expected = ""
        self._hash = hashlib.sha256()
        self._coming: list[Part] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def expect(self, parts: Sequence[Part]) -> None:
        """From here on, hash and compare what is read part by part; the first part is already open."""
        self._expected = parts[0].sha256
        self._coming = list(parts[1:])
        self._hash = hashlib.sha256()

    def read(self, size_bytes: int) -> bytes:
        """Exactly that many bytes.  Raises `NotTrusted` where there are fewer."""
        pieces: list[bytes] = []
        while size_bytes:
            if not self._left and self._coming:
                self._next_part()
            piece = os.read(self._descriptor, min(size_bytes, self._left))
            if not piece:
                raise NotTrusted(
                    f"{self.path} was truncated",
                    values={"expected": f"{size_bytes} more bytes", "found": "the end of the file"},
                    hint="copy the bundle again",
                )
            self._hash.update(piece)
            self._left -= len(piece)
            size_bytes -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def finish_part(self) -> None:
        """Read the rest of the open part and compare its SHA-256.  Raises `NotTrusted` with its name."""
        while self._left:
            self.read(min(self._left, CHUNK_BYTES))
        found = f"sha256:{self._hash.hexdigest()}"
        if self._expected and found != self._expected:
            raise NotTrusted(
                f"{self.path} was altered, or is part of another bundle",
                values={"index says": self._expected, "file has": found},
                hint="copy this part again",
            )

    def _next_part(self) -> None:
        self.finish_part()
        part = self._coming.pop(0)
        descriptor = _open_sized(part)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self.path, self._left, self._expected = part.path, part.size_bytes, part.sha256
        self._hash = hashlib.sha256()


def _open_sized(part: Part) -> int:
    descriptor = open_regular(part.path)
    found = os.fstat(descriptor).st_size
    if found != part.size_bytes:
        os.close(descriptor)
        raise NotTrusted(
            f"{part.path} was truncated or altered, or is part of another bundle",
            values={"index says": f"{part.size_bytes} bytes", "file has": f"{found} bytes"},
            hint="copy the bundle again",
        )
    return descriptor
