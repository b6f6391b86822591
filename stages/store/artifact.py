"""Artifacts: directories that are complete or absent, named by the SHA-256 of their manifest.

    manifest.json         deterministic; its digest is the artifact's name
    measured.json         what it cost; names that digest, decides nothing; may be absent
    manifest.dsse.json    who signed the manifest, where somebody did
    tensors.safetensors   where the manifest lists it, and files of lines (`lines.py`)

Nothing else may be in the directory, but for what operating systems leave (`debris.py`).  Bytes are hashed and then
parsed: the same bytes, read once.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, describe_kind, read_kind_and_version, sha256_digest
from schemas.errors import BadInput, NotTrusted, UsageProblem
from schemas.kinds import ARTIFACTS, artifact_model
from schemas.measured import Measured
from schemas.plan import PlanManifest
from schemas.refs import FileReference, TensorReference
from schemas.state import StateManifest
from stages.process import intent
from stages.process.measure import MeasuredFacts
from stages.store.debris import is_debris
from stages.store.files import complete_directory, sweep
from stages.store.lines import Lines, read_lines
from stages.store.output import check_output, refuse_overlap
from stages.store.regular import file_digest, file_size, read_regular
from stages.store.signing import SIGNATURE_FILE, Signer, check_signature
from stages.store.tensors import TENSORS_FILE, LazyTensors, Shapes, TensorFile, TensorWriter

MANIFEST_FILE = "manifest.json"
MEASURED_FILE = "measured.json"
IN_THE_WAY = "give another --out, or replace it with --force"
UNLISTED_FILES = (MANIFEST_FILE, MEASURED_FILE, SIGNATURE_FILE)  # what may be beside the files of a manifest

M = TypeVar("M", bound=Manifest)


@dataclass(frozen=True)
class Artifact(Generic[M]):
    """A manifest that was read and checked at `path`; `digest` is its name."""

    path: Path
    manifest: M
    digest: str

    def bytes(self) -> bytes:
        """The manifest's bytes on disk, whatever its version.  Raises `NotTrusted` if they have changed since."""
        data = read_regular(self.path / MANIFEST_FILE, at_most=LARGE_MANIFEST_LIMIT_BYTES)
        if sha256_digest(data) != self.digest:
            raise NotTrusted(
                f"{self.path / MANIFEST_FILE} was altered while it was used",
                values={"first": self.digest, "then": sha256_digest(data)},
                hint="copy the artifact again",
            )
        return data

    def measured(self) -> Measured | None:
        """`measured.json`: what making it cost, if that is known."""
        path = self.path / MEASURED_FILE
        if not os.path.lexists(path):
            return None
        return Measured.from_bytes(read_regular(path, at_most=Measured.LIMIT_BYTES), source=str(path))


def artifact_bytes(artifact: Path) -> int:
    """Bytes of an artifact as it travels."""
    with os.scandir(artifact) as entries:
        return sum(entry.stat().st_size for entry in entries if not is_debris(entry.name))


def read_manifest(path: Path, kind: type[M]) -> M:
    """A document in a file of its own.  Raises `BadInput` for what is not one, or was altered."""
    return kind.from_bytes(read_regular(path, at_most=kind.LIMIT_BYTES), source=str(path))


def open_artifact(path: Path, kind: type[M]) -> Artifact[M]:
    """Parse and check an artifact of one kind: manifest, file set, sizes, headers.

    Tensors are hashed when they are read.  Raises `BadInput` for what is not such an artifact, `NotTrusted` for one
    that was altered.
    """
    manifest_path = path / MANIFEST_FILE
    if not path.is_dir():
        raise BadInput(
            f"{path} is not an artifact directory",
            values={"expected": f"a {kind.KIND} artifact", "found": "a file" if path.exists() else "nothing"},
        )
    if not os.path.lexists(manifest_path):
        raise BadInput(
            f"{path} has no {MANIFEST_FILE}",
            values={"expected": f"a {kind.KIND} artifact"},
            hint="the copy was interrupted, or this is another directory",
        )
    data = read_regular(manifest_path, at_most=kind.LIMIT_BYTES)
    manifest = kind.from_bytes(data, source=str(manifest_path))
    artifact = Artifact(path, manifest, sha256_digest(data))
    _check_files(artifact)
    intent.will_read(path, kind.KIND)
    return artifact


def check_same_plan(plan: Artifact[PlanManifest], state: Artifact[StateManifest]) -> None:
    """Check that a state belongs to a plan.  Raises `BadInput` with both digests."""
    if state.manifest.plan != plan.digest:
        raise BadInput(
            f"{state.path} belongs to another plan",
            values={"expected": plan.digest, "found": state.manifest.plan},
            hint="take plan and state from the same federation",
        )


def read_tensors(artifact: Artifact[Any], *prefixes: str) -> dict[str, np.ndarray]:
    """Every tensor, or those whose names start with one of `prefixes`, float32, each compared with its SHA-256.

    Raises `NotTrusted` for altered bytes, `BadInput` for NaN or infinite values.
    """
    with tensor_file(artifact) as file:
        tensors = {name: file.tensor(name) for name in file.references if name.startswith(prefixes or "")}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise BadInput(
                f"{artifact.path}: tensor {name} holds values that are not finite",
                values={"expected": "finite values", "found": f"{int((~np.isfinite(values)).sum())} NaN or infinite"},
                hint="its training diverged, or it was made up: go back to the previous state",
            )
    return tensors


def artifact_lines(artifact: Artifact[Any], file: str) -> Iterator[Any]:
    """The lines of one of the artifact's `LINES`, each strictly parsed.

    Iterate to the end: only then is the file checked.  Raises `NotTrusted` where the file was altered,
    `BadInput` where it cannot be used or contradicts the manifest.
    """
    manifest = artifact.manifest
    reference = next(one for one in manifest.files if one.name == file)
    lines = read_lines(artifact.path / file, reference, manifest.LINES[file])
    try:
        yield from manifest.checked_lines(file, lines)
    except ValueError as error:
        raise BadInput(
            f"{artifact.path / file} and its manifest contradict each other: {error}",
            hint="it was made wrong: make the artifact again with a current chainctl",
        ) from None


def check_lines(artifact: Artifact[Any]) -> None:
    """Every file of lines, to the last byte.  Raises `NotTrusted` and `BadInput`."""
    for file in artifact.manifest.LINES:
        for _ in artifact_lines(artifact, file):
            pass


def tensor_file(artifact: Artifact[Any], *, kept_open: bool = True) -> TensorFile:
    """The artifact's tensor file, opened and its header checked; see `TensorFile`."""
    return TensorFile.open(artifact.path / TENSORS_FILE, artifact.manifest.tensors, kept_open=kept_open)


def verify_artifact(path: Path) -> Artifact[Any]:
    """Check everything that can be checked of an artifact of any kind, to the last byte."""
    manifest_path = path / MANIFEST_FILE
    if not os.path.lexists(manifest_path):
        raise BadInput(f"{path} has no {MANIFEST_FILE}", hint="the copy was interrupted, or this is not an artifact")
    kind, version = kind_and_version(path)
    if not isinstance(kind, str) or kind not in ARTIFACTS:
        raise BadInput(
            f"{manifest_path} is of a kind that this chainctl does not know",
            values={"expected": ", ".join(ARTIFACTS), "found": describe_kind(kind, version)},
            hint="upgrade chainctl",
        )
    artifact = open_artifact(path, artifact_model(kind))
    for reference in getattr(artifact.manifest, "files", ()):
        if reference.name not in artifact.manifest.LINES:
            _check_hash(path, reference)
    check_lines(artifact)
    if getattr(artifact.manifest, "tensors", ()):
        with tensor_file(artifact) as file:
            for name in file.references:
                file.check(name)
    return artifact


def kind_and_version(path: Path) -> tuple[object, object]:
    """Of the manifest in a directory.  Raises `BadInput` where it is not a JSON object."""
    manifest_path = path / MANIFEST_FILE
    data = read_regular(manifest_path, at_most=LARGE_MANIFEST_LIMIT_BYTES)
    return read_kind_and_version(data, source=str(manifest_path))


def existing(
    out: Path, kind: type[M], *, same: Callable[[M], bool], force: bool, signer: Signer | None = None
) -> Artifact[M] | None:
    """The artifact at `out` if it was made from the same inputs; None where there is nothing, or with `force`.

    With a `signer` only one that it has signed counts: whoever can write there can put one there that fits.  Raises
    `UsageProblem` where something else is there, since nothing is overwritten without `force`, and `NotTrusted` where
    it is signed with another key or was altered.
    """
    if force or not os.path.lexists(out):
        return None
    artifact = _open_existing(out, kind, signer)
    if not same(artifact.manifest):
        raise UsageProblem(
            f"{out} holds a {kind.KIND} made from other inputs", values={"it is": artifact.digest}, hint=IN_THE_WAY
        )
    verify_artifact(out)
    intent.is_there(out)
    return artifact


def check_place(
    out: Path,
    kind: type[Manifest],
    *read: Path,
    force: bool,
    signer: Signer | None = None,
    needed_bytes: int = 0,
) -> None:
    """Check before any work that an artifact can be put at `out`, unless one of its kind is there to be found.

    What is `read` is not replaced.  `needed_bytes`: of its files, as far as they are known.  Raises as `check_output`,
    `refuse_overlap` and `existing` do.
    """
    if force:
        refuse_overlap(out, *read)
    sweep(out)
    intent.will_write(out, needed_bytes or None)
    if out.exists() and not force:
        _open_existing(out, kind, signer)
    else:
        check_output(out, force=force, needed_bytes=needed_bytes)


def _open_existing(out: Path, kind: type[M], signer: Signer | None) -> Artifact[M]:
    try:
        artifact = open_artifact(out, kind)
    except BadInput as error:
        raise UsageProblem(
            f"{out} exists already and is not a {kind.KIND} artifact: {error.fact}", hint=IN_THE_WAY
        ) from None
    if signer is not None:
        _check_own(artifact, signer)
    return artifact


def _check_own(artifact: Artifact[Any], signer: Signer) -> None:
    """Check that the signer has signed an artifact.

    Raises `UsageProblem` where nobody has, `NotTrusted` where another has, `BadInput` for what is not a file.
    """
    if not os.path.lexists(artifact.path / SIGNATURE_FILE):
        raise UsageProblem(
            f"{artifact.path} holds an unsigned {artifact.manifest.KIND}; chainctl signs only what it makes itself",
            values={"expected": f"a signature by {signer.name} {signer.public}", "found": "none"},
            hint=f"{IN_THE_WAY}, which does the work again",
        )
    try:
        check_signature(artifact.path, artifact.bytes(), signer.public, whose=signer.name)
    except (BadInput, NotTrusted) as error:
        raise type(error)(error.fact, values=error.values, hint=IN_THE_WAY) from None


class Draft:
    """An artifact in the making, in a hidden directory.

    Its `signer` signs what this process wrote, hashed as it was written: never what lies in a directory.
    """

    def __init__(self, path: Path, signer: Signer | None = None) -> None:
        self.path = path
        self.signer = signer
        self.finished = False

    def write_tensors(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[tuple[TensorReference, ...], tuple[FileReference, ...]]:
        """Write float32 tensors; the references that the manifest holds, to them and to their file."""
        shapes = tensors.shapes if isinstance(tensors, LazyTensors) else _shapes(tensors)
        writer = self.tensor_writer(shapes)
        for name in sorted(tensors):
            writer.write(name, tensors[name])
        references, file = writer.finish()
        return references, (file,)

    def tensor_writer(self, shapes: Shapes) -> TensorWriter:
        """A writer for tensors too large to hold at once."""
        return TensorWriter(self.path / TENSORS_FILE, shapes)

    def write_lines(self, *files: Lines) -> None:
        """Write files of lines; the manifest lists their references."""
        for lines in files:
            self._write(lines.reference.name, lines.data)

    def finish(self, manifest: Manifest, measured: MeasuredFacts | None) -> None:
        """Write `measured.json` and the signature, then the manifest, last; and read it all back.

        What nobody could read is never put in place: raises `BadInput` where the manifest is larger than its readers
        take, or contradicts itself or the files beside it.
        """
        data = manifest.readable_bytes()
        if measured is not None:
            facts = measured.to_measured(sha256_digest(data))
            self._write(MEASURED_FILE, facts.readable_bytes())
        if self.signer is not None:
            self._write(SIGNATURE_FILE, self.signer.envelope(data))
        self._write(MANIFEST_FILE, data)
        check_lines(open_artifact(self.path, type(manifest)))
        self.finished = True

    def _write(self, name: str, data: bytes) -> None:
        with (self.path / name).open("xb") as file:  # never through a link that somebody put there
            file.write(data)


@contextmanager
def new_artifact(out: Path, *, force: bool, signer: Signer | None = None) -> Iterator[Draft]:
    """Make an artifact at `out`: complete when the block ends, absent when it fails or is killed."""
    with complete_directory(out, force=force) as partial:
        draft = Draft(partial, signer)
        yield draft
        assert draft.finished, "an artifact was never finished"


def _check_files(artifact: Artifact[Any]) -> None:
    """The directory holds what the manifest lists and nothing else that counts, and every size is right."""
    references: dict[str, FileReference] = {file.name: file for file in getattr(artifact.manifest, "files", ())}
    allowed = {*UNLISTED_FILES, *references}
    with os.scandir(artifact.path) as entries:
        for entry in entries:
            if entry.name not in allowed and not is_debris(entry.name):
                raise NotTrusted(
                    f"{artifact.path} holds a file that its manifest does not list",
                    values={"manifest lists": ", ".join(sorted(allowed)), "found": ascii(entry.name)},
                    hint="remove the file, or copy the artifact again",
                )
    for name, reference in references.items():
        _check_size(artifact.path / name, reference)
    measured = artifact.measured()
    if measured is not None and measured.artifact != artifact.digest:
        raise NotTrusted(
            f"{artifact.path / MEASURED_FILE} belongs to another artifact",
            values={"manifest is": artifact.digest, "measured.json names": measured.artifact},
            hint="copy the artifact again",
        )


def _check_size(path: Path, reference: FileReference) -> None:
    found = file_size(path)
    if found != reference.size_bytes:
        raise NotTrusted(
            f"{path} was altered or truncated",
            values={"manifest says": f"{reference.size_bytes} bytes", "file has": f"{found} bytes"},
            hint="copy the artifact again",
        )


def _check_hash(path: Path, reference: FileReference) -> None:
    found = file_digest(path / reference.name)
    if found != reference.sha256:
        raise NotTrusted(
            f"{path / reference.name} was altered",
            values={"manifest says": reference.sha256, "file has": found},
            hint="copy the artifact again",
        )


def _shapes(tensors: Mapping[str, np.ndarray]) -> Shapes:
    return {name: values.shape for name, values in tensors.items()}
