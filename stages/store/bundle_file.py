"""The file of a bundle: every byte follows from its index, so the reader compares and never parses."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from schemas.bundle import INDEX_FILE, BundleManifest, Member
from schemas.errors import BadInput, NotTrusted
from stages.process import intent
from stages.store.parts import CHUNK_BYTES, Part, PartReader, check_sizes, first_path, outputs, part_path, whole_path
from stages.store.ustar import BLOCK_BYTES, END, claimed_size, header, member_bytes, padding

INDEX_LIMIT_BYTES = BundleManifest.LIMIT_BYTES


def head_bytes(index: BundleManifest) -> bytes:
    """The first member of a bundle: the index."""
    data = index.canonical_bytes()
    return header(INDEX_FILE, len(data)) + data + padding(len(data))


def total_bytes(index: BundleManifest) -> int:
    """Size of a bundle, all parts together: it follows from the index."""
    return len(head_bytes(index)) + sum(member_bytes(member.size_bytes) for member in index.members()) + len(END)


def parts_of(file: Path, index: BundleManifest) -> list[Part]:
    """The files that a bundle is written to."""
    total = total_bytes(index)
    if index.part_bytes is None:
        return [Part(file, total, "")]
    size = index.part_bytes
    return [
        Part(part_path(file, number + 1), min(size, total - number * size), digest)
        for number, digest in enumerate(index.parts)
    ]


class OpenBundle:
    """A bundle whose index was read and whose size is right; its content is not checked yet."""

    def __init__(self, index: BundleManifest, reader: PartReader) -> None:
        self.index = index
        self._reader = reader

    def read(self, folder: Path | None, leave_out: frozenset[str] | set[str] = frozenset()) -> None:
        """Check every byte after the index, and write the files below `folder` if one is given.

        `leave_out`: folders, or FOLDER/FILE, that are not written.
        """
        try:
            for member in self.index.members():
                path = f"{member.folder}/{member.name}"
                written = folder is not None and leave_out.isdisjoint((member.folder, path))
                self._read_file(path, member, folder / path if folder is not None and written else None)
            self._expect(END, "the end of the archive")
        except NotTrusted:
            self._reader.finish_part()  # names the part that was altered, if one was
            raise
        self._reader.finish_part()

    def _read_file(self, name: str, member: Member, target: Path | None) -> None:
        self._expect(header(name, member.size_bytes), f"the header of {name}")
        digest = hashlib.sha256()
        with ExitStack() as stack:
            if target:
                target.parent.mkdir(exist_ok=True)
            out = stack.enter_context(target.open("xb")) if target else None
            for start in range(0, member.size_bytes, CHUNK_BYTES):
                chunk = self._reader.read(min(CHUNK_BYTES, member.size_bytes - start))
                digest.update(chunk)
                if out:
                    out.write(chunk)
        if f"sha256:{digest.hexdigest()}" != member.sha256:
            raise self._altered(member.sha256, f"sha256:{digest.hexdigest()}", f"{name} in ")
        self._expect(padding(member.size_bytes), f"zeros after {name}")

    def _expect(self, expected: bytes, what: str) -> None:
        if self._reader.read(len(expected)) != expected:
            raise self._altered(what, "other bytes")

    def _altered(self, expected: str, found: str, what: str = "") -> NotTrusted:
        return NotTrusted(
            f"{what}{self._reader.path} was altered",
            values={"index says": expected, "file has": found},
            hint="copy the bundle again",
        )


@contextmanager
def open_bundle(path: Path, *, limit_bytes: int) -> Iterator[OpenBundle]:
    """Read the index of the bundle at `path` (or of which `path` is a part) and compare sizes.

    Raises `BadInput` for what is not a bundle, is too large or lacks a part, `NotTrusted` where the size is wrong.
    """
    first = first_path(path)
    if not os.path.lexists(first):
        raise BadInput(f"{first} is missing", hint="check the name, and copy every part of the bundle here")
    with PartReader(first) as reader:
        index = _read_index(reader)
        size = total_bytes(index)
        if size > limit_bytes:
            raise BadInput(
                f"{first} holds more than is allowed",
                values={"limit": f"{limit_bytes} bytes", "found": f"{size} bytes"},
                hint="if you expect that much, raise --limit",
            )
        parts = _parts_as_found(first, index)
        check_sizes(parts)
        reader.expect(parts)
        for part in parts:
            intent.will_read(part.path, "bundle")
        yield OpenBundle(index, reader)


def _read_index(reader: PartReader) -> BundleManifest:
    size = claimed_size(reader.read(BLOCK_BYTES), INDEX_FILE)
    if size is None or size > INDEX_LIMIT_BYTES:
        raise BadInput(
            f"{reader.path} is not a bundle",
            values={
                "expected": f"a tar archive that starts with {INDEX_FILE}, of {INDEX_LIMIT_BYTES} bytes at most",
                "found": "another start" if size is None else f"{size} bytes",
            },
            hint="'chainctl bundle pack' makes bundles; of a split one, FILE.001 comes first",
        )
    index = BundleManifest.from_bytes(reader.read(size), source=f"{INDEX_FILE} in {reader.path}")
    if reader.read(len(padding(size))) != padding(size):
        raise NotTrusted(f"{reader.path} was altered", hint="copy the bundle again")
    return index


def _parts_as_found(first: Path, index: BundleManifest) -> list[Part]:
    """The parts that the index lists, beside the first one."""
    if index.part_bytes is None:
        return parts_of(first, index)
    file = whole_path(first)
    if first != part_path(file, 1):
        raise BadInput(
            f"{first} is the first part of several, but is not named so", hint=f"rename it to {first.name}.001"
        )
    if index.part_bytes < len(head_bytes(index)) or len(index.parts) != -(-total_bytes(index) // index.part_bytes):
        raise NotTrusted(f"{first} has an index that contradicts itself", hint="ask for it to be packed again")
    parts = parts_of(file, index)
    last = outputs(file)[-1]
    if last > parts[-1].path:
        raise BadInput(
            f"{last} does not belong to this bundle",
            values={"expected": f"{len(parts)} parts"},
            hint="move it elsewhere",
        )
    return parts
