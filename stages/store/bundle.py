"""Bundles: artifacts in one file, to carry on a stick.  Any `tar` reads it; this reader trusts no byte of it.

    bundle.json                   the index: every folder, file, size and SHA-256
    device-01/manifest.json …     the artifacts, in order of name
    history/<digest>.dsse.json    signed manifests of the states before those among them, as far as they were found

The index decides every other byte of the file (see `ustar`), so the index is all that is ever parsed: the rest is
compared with what it implies.  Its size is bounded before it is read, the file's size is compared before anything is
written, and nothing is put in place before the last byte was checked.

An artifact is named after its directory.  Where two would have the same name, each is prefixed with its parent's:
`updates/0000/phone` and `updates/0001/phone` become `0000-phone` and `0001-phone`.
"""

import errno
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.base import describe_validation_error
from schemas.bundle import (
    ENTRY_NAME_PATTERN,
    HISTORY_FOLDER,
    KEPT_NAMES,
    MOST_EARLIER_STATES,
    MOST_PARTS,
    BundledArtifact,
    BundledFile,
    BundleManifest,
    EarlierState,
    Member,
    history_file,
    names_a_device,
)
from schemas.errors import BadInput, ChainError, NotTrusted, UsageProblem
from schemas.state import StateManifest
from stages.process import intent
from stages.store.ancestry import earlier_state, earlier_states
from stages.store.artifact import (
    MANIFEST_FILE,
    Artifact,
    artifact_bytes,
    kind_and_version,
    open_artifact,
    verify_artifact,
)
from stages.store.bundle_file import INDEX_LIMIT_BYTES, OpenBundle, head_bytes, open_bundle, parts_of, total_bytes
from stages.store.debris import is_debris, without_debris
from stages.store.files import complete_entries, put_back, sweep
from stages.store.output import check_output
from stages.store.parts import CHUNK_BYTES, Part, cut, outputs, whole_path
from stages.store.regular import file_digest, file_size, open_regular
from stages.store.signing import SIGNATURE_FILE
from stages.store.ustar import END, header, padding

DEFAULT_LIMIT_BYTES = 16 * 2**30
PLACEHOLDER = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Packed:
    """A bundle on disk; `is_new` is false where it existed before, `missing` counts earlier states not found."""

    paths: tuple[Path, ...]
    index: BundleManifest
    size_bytes: int
    is_new: bool
    missing: int


@dataclass(frozen=True)
class Unpacked:
    """An artifact on disk; `is_new` is false where it existed before."""

    artifact: Artifact[Any]
    name: str
    is_new: bool


def pack(directories: Sequence[Path], out: Path, *, part_bytes: int | None = None, force: bool = False) -> Packed:
    """Write artifacts to `out`, or to `out`.001, `out`.002, … of `part_bytes` each.

    The same artifacts make the same bytes, in any order.  Raises `ChainError` for a directory that is not a complete
    artifact, and `UsageProblem` where something else is at `out`.
    """
    if whole_path(out) != out:
        raise UsageProblem(f"{out} has the name of a part", hint="leave out the number; --split adds it")
    _check_folder(out.parent)
    sweep(out)
    folders = entry_names(list(without_debris(directories)))
    there = _outputs_in_the_way(out)
    if force or not there:
        check_output(out, force=True, needed_bytes=sum(map(artifact_bytes, filter(Path.is_dir, folders.values()))))
    index, sources, missing = _index(folders, part_bytes)
    parts = parts_of(out, index)
    if there and not force:
        if _is_whole(out, index):
            return Packed(tuple(part.path for part in parts), index, total_bytes(index), is_new=False, missing=missing)
        _refuse_others(there, parts)
    for part in parts:
        intent.will_write(part.path, part.size_bytes)
    with _full_media_explained(out), complete_entries(out.parent, out.name, force=bool(there)) as hidden:
        _write(index, sources, [hidden / part.path.name for part in parts])
        for path in there:  # old parts are never left beside new ones; a single file is exchanged
            if path not in (out, *(part.path for part in parts)) or index.parts:
                path.unlink()
    return Packed(tuple(part.path for part in parts), index, total_bytes(index), is_new=True, missing=missing)


def unpack(
    path: Path, into: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES, force: bool = False
) -> tuple[Unpacked, ...]:
    """Put every artifact of a bundle at `into`/name.

    Each is complete or absent, and none is put in place before all were verified.  One that is there already is left
    alone; another one in its place is a `UsageProblem`, unless `force` replaces it.
    """
    _check_folder(into)
    put_back(into)
    with open_bundle(path, limit_bytes=limit_bytes) as bundle, _full_media_explained(into):
        entries = bundle.index.artifacts
        there = {entry.name for entry in entries if not force and _is_there(into / entry.name, entry)}
        earlier = _earlier_there(into / HISTORY_FOLDER, bundle.index, force=force)
        new = (file for entry in entries if entry.name not in there for file in entry.files)
        check_output(into / "bundle", force=True, needed_bytes=sum(file.size_bytes for file in new))
        _intend(bundle, into, leave_out=there | earlier)
        found: dict[str, Artifact[Any]] = {}
        with complete_entries(into, "bundle", force=force) as hidden:
            bundle.read(hidden, leave_out=there | earlier)
            for entry in entries:
                found[entry.name] = _verified(path, (into if entry.name in there else hidden) / entry.name)
            _put_history(path, hidden / HISTORY_FOLDER, into / HISTORY_FOLDER, force=force)
        return tuple(
            Unpacked(Artifact(into / name, artifact.manifest, artifact.digest), name, is_new=name not in there)
            for name, artifact in found.items()
        )


def _earlier_there(folder: Path, index: BundleManifest, *, force: bool) -> set[str]:
    """Which signed manifests of earlier states are in `folder` already.  Raises `UsageProblem` as `_is_there` does."""
    if index.history:
        _check_folder(folder)
        if folder.is_symlink():
            raise UsageProblem(f"{folder} is a link", hint="unpack into another folder")
        sweep(folder / "bundle")  # where all of it is there, nothing is moved to it that would
    there: set[str] = set()
    for earlier in index.history if not force else ():
        path = folder / history_file(earlier.state)
        if os.path.lexists(path):
            if file_size(path) != earlier.size_bytes or file_digest(path) != earlier.sha256:
                raise UsageProblem(
                    f"{path} exists already and differs from what is in the bundle",
                    values={"bundle has": earlier.sha256},
                    hint="unpack into another folder, or replace it with --force",
                )
            there.add(f"{folder.name}/{path.name}")
    return there


def _intend(bundle: OpenBundle, into: Path, *, leave_out: set[str]) -> None:
    """Note for a dry run what is unpacked, after every byte was compared with the index."""
    if not intent.is_dry_run():
        return
    bundle.read(None)
    for entry in bundle.index.artifacts:
        if entry.name not in leave_out:
            intent.will_write(into / entry.name, sum(file.size_bytes for file in entry.files))
    for earlier in bundle.index.history:
        name = f"{HISTORY_FOLDER}/{history_file(earlier.state)}"
        if name not in leave_out:
            intent.will_write(into / name, earlier.size_bytes)


def _put_history(bundle: Path, unpacked: Path, folder: Path, *, force: bool) -> None:
    """Check the signed manifests that were unpacked, and move them to those in `folder`."""
    if not unpacked.exists():
        return
    for path in unpacked.iterdir():
        try:
            earlier_state(path, f"sha256:{path.name.partition('.')[0]}")
        except ChainError as error:
            raise NotTrusted(
                f"in {bundle}, {path.name} is not the signed manifest of a state", hint=error.hint
            ) from None
    with complete_entries(folder, "bundle", force=force) as hidden:
        for path in unpacked.iterdir():
            path.rename(hidden / path.name)
    unpacked.rmdir()


def entry_names(directories: Sequence[Path]) -> dict[str, Path]:
    """The name of each artifact in a bundle, independent of the order of `directories`."""
    paths = sorted({Path(os.path.abspath(directory)) for directory in directories})  # noqa: PTH100 -- keeps a link's name
    alike = Counter(path.name.casefold() for path in paths)
    names: dict[str, Path] = {}
    for path in paths:
        name = path.name if alike[path.name.casefold()] == 1 else f"{path.parent.name}-{path.name}"
        if not re.fullmatch(ENTRY_NAME_PATTERN, name) or names_a_device(name) or name.casefold() in KEPT_NAMES:
            raise UsageProblem(
                f"{path} would have a name that is not valid on every stick",
                values={
                    "expected": f"at most 64 of A-Z a-z 0-9 . _ -, none that Windows reserves, not {HISTORY_FOLDER}",
                    "found": ascii(name),
                },
                hint="rename the directory",
            )
        names[name] = path
    if len({name.casefold() for name in names}) != len(paths):
        raise UsageProblem(
            "two artifacts would have the same name in the bundle",
            values={"names": ", ".join(sorted({path.name for path in paths if alike[path.name.casefold()] > 1}))},
            hint="rename a directory, or make two bundles",
        )
    return dict(sorted(names.items()))


def _is_there(path: Path, entry: BundledArtifact) -> bool:
    """Whether exactly the files of `entry` are at `path`.  Raises `UsageProblem` where something else is."""
    if not os.path.lexists(path):
        return False
    if not _holds(path, entry):
        raise UsageProblem(
            f"{path} exists already and differs from what is in the bundle",
            values={"bundle has": entry.digest},
            hint="unpack into another folder, or replace it with --force",
        )
    return True


def _holds(path: Path, entry: BundledArtifact) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    with os.scandir(path) as there:
        own = (found.name for found in there if not is_debris(found.name))
        names = sorted(itertools.islice(own, len(entry.files) + 1))
    if names != [file.name for file in entry.files]:
        return False
    try:
        return all(file_size(path / file.name) == file.size_bytes for file in entry.files) and all(
            file_digest(path / file.name) == file.sha256 for file in entry.files
        )
    except BadInput:
        return False  # a link or a device


def _verified(bundle: Path, path: Path) -> Artifact[Any]:
    """The artifact at `path`; errors name its place in the bundle, not the hidden directory."""
    try:
        return verify_artifact(path)
    except ChainError as error:
        fact = error.fact.replace(f"{path.parent}{os.sep}", "")
        raise type(error)(f"in {bundle}, {fact}", values=error.values, hint=error.hint) from None


# Writing.


def _index(folders: Mapping[str, Path], part_bytes: int | None) -> tuple[BundleManifest, dict[str, Path], int]:
    """The index of artifacts, each verified, and of the states before them; where each file is; states not found."""
    try:
        artifacts = tuple(BundledArtifact(name=name, files=_files(path)) for name, path in folders.items())
        history, missing = _history(folders.values())
        earlier = tuple(_earlier(state, path) for state, path in history.items())
        index = BundleManifest(artifacts=artifacts, history=earlier, part_bytes=None, parts=())
    except ValidationError as error:
        raise UsageProblem("these artifacts cannot be in one bundle", values=describe_validation_error(error)) from None
    if len(head_bytes(index)) > INDEX_LIMIT_BYTES:
        raise UsageProblem("these are too many files for one bundle", hint="make several bundles")
    sources = {
        f"{entry.name}/{file.name}": folders[entry.name] / file.name for entry in artifacts for file in entry.files
    }
    sources |= {f"{HISTORY_FOLDER}/{history_file(state)}": path for state, path in history.items()}
    return (index if part_bytes is None else _index_with_parts(index, sources, part_bytes)), sources, missing


def _history(directories: Iterable[Path]) -> tuple[dict[str, Path], int]:
    """Envelopes of the states before signed ones, in order of digest; and how many states lack theirs, at most."""
    found: dict[str, Path] = {}
    missing = 0
    for path in directories:
        if os.path.lexists(path / SIGNATURE_FILE) and kind_and_version(path)[0] == StateManifest.KIND:
            state = open_artifact(path, StateManifest)
            earlier = earlier_states(state)
            missing = max(missing, state.manifest.round - len(earlier))
            found |= earlier
    return dict(sorted(itertools.islice(found.items(), MOST_EARLIER_STATES))), missing


def _earlier(state: str, path: Path) -> EarlierState:
    return EarlierState(state=state, size_bytes=file_size(path), sha256=file_digest(path))


def _files(path: Path) -> tuple[BundledFile, ...]:
    """The files of a verified artifact: all in its directory but debris, as `verify_artifact` allows no others."""
    manifest = verify_artifact(path).manifest
    known = {file.name: file.sha256 for file in getattr(manifest, "files", ())}
    return tuple(
        BundledFile(name=name, size_bytes=file_size(path / name), sha256=known.get(name) or file_digest(path / name))
        for name in sorted(entry.name for entry in without_debris(path.iterdir()))
    )


def _index_with_parts(index: BundleManifest, sources: Mapping[str, Path], part_bytes: int) -> BundleManifest:
    """The index with the SHA-256 of every part.  Their number comes first: the digests take space themselves."""
    count, needed = 0, 1
    while count != needed:
        count = needed
        draft = index.model_copy(update={"part_bytes": part_bytes, "parts": (PLACEHOLDER,) * count})
        needed = -(-total_bytes(draft) // part_bytes)
        if needed > MOST_PARTS or len(head_bytes(draft)) > part_bytes:
            raise UsageProblem(
                "the parts would be too small",
                values={
                    "of": f"{part_bytes} bytes",
                    "needed": f"{needed} parts, {len(head_bytes(draft))} bytes for the index",
                    "possible": f"{MOST_PARTS} parts, {part_bytes} bytes for the index",
                },
                hint="give a larger --split",
            )
    hashes = [hashlib.sha256() for _ in range(count)]
    for number, piece in cut(_payload(draft, sources), part_bytes, start=len(head_bytes(draft))):
        hashes[number - 1].update(piece)
    return draft.model_copy(update={"parts": tuple(f"sha256:{found.hexdigest()}" for found in hashes)})


def _write(index: BundleManifest, sources: Mapping[str, Path], paths: Sequence[Path]) -> None:
    chunks = itertools.chain([head_bytes(index)], _payload(index, sources))
    pieces = cut(chunks, index.part_bytes or total_bytes(index))
    for number, part in itertools.groupby(pieces, key=lambda piece: piece[0]):
        with paths[number - 1].open("xb") as file:
            for _, piece in part:
                file.write(piece)


def _payload(index: BundleManifest, sources: Mapping[str, Path]) -> Iterator[bytes]:
    """Everything after the index."""
    for member in index.members():
        name = f"{member.folder}/{member.name}"
        yield header(name, member.size_bytes)
        yield from _content(sources[name], member)
        yield padding(member.size_bytes)
    yield END


def _content(path: Path, expected: Member) -> Iterator[bytes]:
    """A file's bytes.  Raises `NotTrusted` where they are no longer those that were verified."""
    digest = hashlib.sha256()
    left = expected.size_bytes
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
    if left or f"sha256:{digest.hexdigest()}" != expected.sha256:
        raise NotTrusted(f"{path} was altered while it was packed", hint="run the same command again")


# What may be in the way.


def _check_folder(folder: Path) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageProblem(f"{folder} is not a directory")
    if os.path.lexists(folder / MANIFEST_FILE):
        raise UsageProblem(f"{folder} is an artifact, and nothing may be added to it", hint="give another folder")


def _outputs_in_the_way(out: Path) -> list[Path]:
    there = outputs(out)
    for path in there:
        if path.is_symlink() or not path.is_file():
            raise UsageProblem(f"{path} exists already and is not a file", hint="give another --out")
    return there


def _is_whole(out: Path, index: BundleManifest) -> bool:
    """Whether exactly the bundle that `index` describes is at `out`, to the last byte."""
    try:
        with open_bundle(out, limit_bytes=total_bytes(index)) as bundle:
            bundle.read(None)
            return bundle.index == index
    except ChainError:
        return False


def _refuse_others(there: Sequence[Path], parts: Sequence[Part]) -> None:
    """Parts without a first one were left by a killed pack, if they are the parts that would be written now."""
    left_over = {part.path: part.sha256 for part in parts[1:]}
    for path in there:
        if path not in left_over or file_digest(path) != left_over[path]:
            raise UsageProblem(
                f"{path} exists already and belongs to another bundle",
                hint="give another --out, or replace it with --force",
            )


@contextmanager
def _full_media_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UsageProblem(
                f"the medium of {target} cannot hold so large a file", hint="pack with --split 2GiB"
            ) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageProblem(f"the medium of {target} is full", hint="make room, or give another place") from None
        raise
