"""safetensors files as artifacts hold them: float32, in exactly one layout, read and written a chunk at a time.

The safetensors library accepts duplicate names, NUL, `../../`, NaN and a header of any size, and writes its
metadata in random order.  Here a file holds exactly the tensors its manifest lists, in order of name, without
metadata and without holes, so the same tensors are always the same bytes, and a header can be checked before a
single value is read.  The library reads what is written here.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from schemas.errors import BadInput, NotTrusted
from schemas.refs import FileReference, TensorReference
from stages.store.regular import open_regular
from stages.store.safetensors_header import TensorSpec, encode_header, has_header

TENSORS_FILE = "tensors.safetensors"
FLOAT32 = np.dtype("<f4")
HEADER_LIMIT_BYTES = 2**20
CHUNK_ELEMENTS = 2**18

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LazyTensors(Mapping[str, np.ndarray]):
    """Float32 arrays by name, each made when it is asked for; shapes are known before."""

    shapes: Shapes
    make: Callable[[str], np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def header_bytes(shapes: Shapes) -> bytes:
    """The header of a file of float32 tensors, in order of name, padded to eight bytes."""
    return encode_header(TensorSpec(name, "F32", shapes[name]) for name in sorted(shapes))


def elements(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)  # of Python's integers: a shape on disk may claim anything


class TensorFile:
    """An open tensor file whose header is exactly the one that `references` imply.

    One that is not `kept_open` is opened for each chunk: a process may have few files open, often 1,024 or 256.
    """

    def __init__(self, path: Path, references: Sequence[TensorReference], *, kept_open: bool = True) -> None:
        self.path = path
        self._kept: int | None = None
        self._kept_open = kept_open
        self.references = {reference.name: reference for reference in references}
        self._offsets: dict[str, int] = {}
        offset = len(header_bytes(self._shapes()))
        for name in sorted(self.references):
            self._offsets[name] = offset
            offset += elements(self.references[name].shape) * FLOAT32.itemsize
        self.size_bytes = offset

    @classmethod
    def open(cls, path: Path, references: Sequence[TensorReference], *, kept_open: bool = True) -> Self:
        """Open `path` and check its size and header.  Raises `NotTrusted`; a link or a device is `BadInput`."""
        file = cls(path, references, kept_open=kept_open)
        try:
            file._check_header()
        except BaseException:
            file.close()
            raise
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None

    def chunk(self, name: str, start: int, count: int) -> np.ndarray:
        """`count` elements of a tensor from element `start` on, float32 (`count`,), as stored."""
        size = count * FLOAT32.itemsize
        buffer = bytearray(size)
        view = memoryview(buffer)
        filled = 0
        begin = self._offsets[name] + start * FLOAT32.itemsize
        with self._descriptor() as descriptor:
            while filled < size:
                got = os.preadv(descriptor, [view[filled:]], begin + filled)
                if got <= 0:
                    raise self._altered(f"{size} bytes", f"{filled} bytes")
                filled += got
        return np.frombuffer(buffer, FLOAT32)

    def chunks(self, name: str, count: int) -> Iterator[np.ndarray]:
        """All elements of a tensor in order, float32, at most `count` at a time.  Not compared with the manifest."""
        size = elements(self.references[name].shape)
        for start in range(0, size, count):
            yield self.chunk(name, start, min(count, size - start))

    def checked_chunks(self, name: str, count: int) -> Iterator[np.ndarray]:
        """The same; when the last was read the tensor's SHA-256 is checked.  Raises `NotTrusted`."""
        digest = hashlib.sha256()
        for chunk in self.chunks(name, count):
            digest.update(chunk.data)
            yield chunk
        self.check_digest(name, digest.hexdigest())

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor; the SHA-256 of the very bytes returned is checked.  Raises `NotTrusted`."""
        reference = self.references[name]
        values = self.chunk(name, 0, elements(reference.shape))
        self.check_digest(name, hashlib.sha256(values.data).hexdigest())
        return values.reshape(reference.shape)

    def check(self, name: str) -> None:
        """The SHA-256 of a tensor of any size, a chunk at a time.  Raises `NotTrusted`."""
        for _ in self.checked_chunks(name, CHUNK_ELEMENTS):
            pass

    def check_digest(self, name: str, found_hex: str) -> None:
        """Compare the SHA-256 of a tensor's bytes with the manifest's."""
        expected = self.references[name].sha256
        if f"sha256:{found_hex}" != expected:
            raise self._altered(expected, f"sha256:{found_hex}", what=f"tensor {name} of ")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: reference.shape for name, reference in self.references.items()}

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        descriptor = open_regular(self.path) if self._kept is None else self._kept
        if self._kept_open:
            self._kept = descriptor
        try:
            yield descriptor
        finally:
            if not self._kept_open:
                os.close(descriptor)

    def _check_header(self) -> None:
        with self._descriptor() as descriptor:
            found_size = os.fstat(descriptor).st_size
            if found_size != self.size_bytes:
                raise self._altered(f"{self.size_bytes} bytes", f"{found_size} bytes")
            expected = header_bytes(self._shapes())
            if len(expected) > HEADER_LIMIT_BYTES or not has_header(descriptor, expected):
                raise self._altered("the header that the manifest implies", "another header")

    def _altered(self, expected: str, found: str, what: str = "") -> NotTrusted:
        return NotTrusted(
            f"{what}{self.path} was altered or truncated",
            values={"manifest says": expected, "file has": found},
            hint="copy the artifact again, then run 'chainctl verify' on it",
        )


class TensorWriter:
    """Writes a tensor file in order of name, a chunk at a time, hashing as it goes: constant memory."""

    def __init__(self, path: Path, shapes: Shapes) -> None:
        header = header_bytes(shapes)
        if len(header) > HEADER_LIMIT_BYTES:
            raise BadInput(
                "these are too many tensors for one file",
                values={
                    "at most": f"{HEADER_LIMIT_BYTES} bytes of header",
                    "given": f"{len(shapes)} tensors, {len(header)} bytes of header",
                },
                hint="train fewer layers; nothing would read such a file",
            )
        self._shapes = dict(sorted(shapes.items()))
        self._path = path
        self._file = open(path, "wb", opener=_without_links)  # noqa: SIM115 -- it is open until `finish`
        self._file_hash = hashlib.sha256()
        self._hashes = {name: hashlib.sha256() for name in self._shapes}
        self._written = dict.fromkeys(self._shapes, 0)
        self._put(header)

    def write(self, name: str, values: np.ndarray) -> None:
        """The next elements of `name`.  Tensors must come in order of name, each whole before the next."""
        data = np.ascontiguousarray(values, FLOAT32).data
        unfinished = next((other for other in self._shapes if self._left(other)), None)
        if name != unfinished or values.size > self._left(name):
            raise ValueError(f"{values.size} elements of {name} come out of order")
        self._hashes[name].update(data)
        self._written[name] += values.size
        self._put(data)

    def finish(self) -> tuple[tuple[TensorReference, ...], FileReference]:
        """Close the file; the references that the manifest holds, to its tensors and to the file."""
        if any(self._left(name) for name in self._shapes):
            raise ValueError("a tensor is not whole")
        size = self._file.tell()
        self._file.close()
        references = tuple(
            TensorReference(name=name, dtype="F32", shape=shape, sha256=f"sha256:{self._hashes[name].hexdigest()}")
            for name, shape in self._shapes.items()
        )
        digest = f"sha256:{self._file_hash.hexdigest()}"
        return references, FileReference(name=self._path.name, size_bytes=size, sha256=digest)

    def _left(self, name: str) -> int:
        return elements(self._shapes[name]) - self._written[name]

    def _put(self, data: bytes | memoryview) -> None:
        self._file_hash.update(data)
        self._file.write(data)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
