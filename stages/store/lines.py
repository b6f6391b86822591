"""Files of lines beside a manifest (schemas/devices.py): one canonical JSON object per line, sorted by device.

They are read in a stream, in memory that does not grow with them.  Each line is bounded before it is parsed, strictly
validated, and the bytes that are parsed are the bytes that are hashed.  The hash and the sums of the manifest are known
only when the last line was read, so callers iterate to the end before they act on any line.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from pydantic import ValidationError

from schemas.base import describe_validation_error, sha256_digest
from schemas.devices import LINE_LIMIT_BYTES, MOST_DEVICES, Line
from schemas.errors import BadInput, ChainError, NotTrusted
from schemas.refs import FileReference
from stages.store.regular import open_regular

CHUNK_BYTES = 2**16

L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Lines:
    """A file of lines that is to be written: its bytes, and what a manifest says of them."""

    reference: FileReference
    count: int
    data: bytes


def encode_lines(file: str, lines: Iterable[Line]) -> Lines:
    """Lines in order of name as a file of that name.

    Raises `BadInput` where they are more, or longer, than anybody reads, `ValueError` where they are out of order.
    """
    return join_lines(file, ((line.name, line.canonical_bytes()) for line in lines))


def join_lines(file: str, lines: Iterable[tuple[str, bytes]]) -> Lines:
    """The same of names and canonical bytes."""
    data, count, last = bytearray(), 0, ""
    for name, line in lines:
        if name <= last:
            raise ValueError(f"line {name} of {file} comes out of order")
        if len(line) > LINE_LIMIT_BYTES:
            raise BadInput(
                f"what is to be said of device {name} is too long",
                values={"at most": f"{LINE_LIMIT_BYTES} bytes", "found": f"{len(line)} bytes"},
                hint="it names numbers that no device has: leave that device out",
            )
        data += line
        count, last = count + 1, name
    check_device_count(count)
    size, digest = len(data), sha256_digest(memoryview(data))
    return Lines(FileReference(name=file, size_bytes=size, sha256=digest), count, bytes(data))


def check_device_count(count: int) -> None:
    """No more devices than anybody reads.  Raises `BadInput`."""
    if count > MOST_DEVICES:
        raise BadInput(
            "these are too many devices for one federation",
            values={"at most": MOST_DEVICES, "given": count},
            hint="plan several federations, or leave devices out",
        )


def read_lines(path: Path, reference: FileReference, model: type[L]) -> Iterator[L]:
    """The lines of a file, each strictly parsed.

    Raises `NotTrusted` where the bytes are not those that the manifest names, at the end at the latest, and `BadInput`
    where they are and some line is not a canonical `model` or comes out of order.
    """
    if reference.size_bytes > MOST_DEVICES * LINE_LIMIT_BYTES:
        raise BadInput(
            f"{path} is too large for a file of lines",
            values={"at most": f"{MOST_DEVICES * LINE_LIMIT_BYTES} bytes", "manifest says": reference.size_bytes},
        )
    digest = hashlib.sha256()
    with os.fdopen(open_regular(path), "rb") as file:
        number, size, last = 0, 0, ""
        while data := file.readline(LINE_LIMIT_BYTES + 1):
            number, size = number + 1, size + len(data)
            digest.update(data)
            if size > reference.size_bytes:
                break
            try:
                line = _parse(data, model, path=path, number=number)
                if line.name <= last:
                    raise _unusable(path, number, "a device of a later name", "one that does not follow")
            except BadInput as error:
                raise _altered_or(error, path, reference, file, digest) from None
            last = line.name
            yield line
    _check(path, reference, size, f"sha256:{digest.hexdigest()}")


def _parse(data: bytes, model: type[L], *, path: Path, number: int) -> L:
    if len(data) > LINE_LIMIT_BYTES:
        raise _unusable(path, number, f"{LINE_LIMIT_BYTES} bytes at most", "more")
    try:
        line = model.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(
            f"{path}: line {number} is not a {model.KIND}",
            values=describe_validation_error(error),
            hint="make the artifact again with a current chainctl, or copy it again",
        ) from None
    if line.canonical_bytes() != data:
        raise _unusable(path, number, "its canonical form", "another spelling of it")
    return line


def _unusable(path: Path, number: int, expected: str, found: str) -> BadInput:
    return BadInput(
        f"{path}: line {number} cannot be used",
        values={"expected": expected, "found": found},
        hint="lines are never edited by hand: make the artifact again",
    )


def _altered_or(
    error: ChainError, path: Path, reference: FileReference, file: IO[bytes], digest: "hashlib._Hash"
) -> ChainError:
    """What is wrong with a file in which a line cannot be used: it was altered, or it was made so."""
    size = os.fstat(file.fileno()).st_size
    while size == reference.size_bytes and (chunk := file.read(CHUNK_BYTES)):
        digest.update(chunk)
    try:
        _check(path, reference, size, f"sha256:{digest.hexdigest()}")
    except NotTrusted as altered:
        return altered
    return error


def _check(path: Path, reference: FileReference, size: int, digest: str) -> None:
    if (size, digest) == (reference.size_bytes, reference.sha256):
        return
    by_size = size != reference.size_bytes
    raise NotTrusted(
        f"{path} was altered or truncated",
        values={
            "manifest says": f"{reference.size_bytes} bytes" if by_size else reference.sha256,
            "file has": f"{size} bytes" if by_size else digest,
        },
        hint="copy the artifact again, then run 'chainctl verify' on it",
    )
