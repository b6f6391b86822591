"""Bundle v1: the index of a bundle, several artifacts in one file.  Every byte of the file follows from it."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, StringConstraints, field_validator, model_validator

from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.refs import Digest, FileReference, PositiveInt
from schemas.trust import ENVELOPE_LIMIT_BYTES

MOST_ARTIFACTS = 1024
MOST_FILES = 16  # of one artifact
MOST_PARTS = 999
LARGEST_FILE_BYTES = 8**11 - 1  # eleven octal digits, all that the header of a tar archive has room for
MOST_EARLIER_STATES = 1024
INDEX_FILE = "bundle.json"
HISTORY_FOLDER = "history"
MANIFEST_FILE = "manifest.json"
ENTRY_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?$"
# Names that Windows keeps for devices, whatever extension follows.
DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))]
)

KEPT_NAMES = (INDEX_FILE, HISTORY_FOLDER)

EntryName = Annotated[str, StringConstraints(pattern=ENTRY_NAME_PATTERN)]


def names_a_device(name: str) -> bool:
    """Whether Windows takes a file of this name for a device."""
    return name.partition(".")[0].casefold() in DEVICES


def history_file(digest: str) -> str:
    """The name of the signed manifest of a state, in the folder of its history."""
    return f"{digest.removeprefix('sha256:')}.dsse.json"


class Member(NamedTuple):
    """A file in a bundle, after the index."""

    folder: str
    name: str
    size_bytes: int
    sha256: str


class EarlierState(Record):
    """The signed manifest of a state before one in the bundle, without its tensors: a DSSE envelope."""

    state: Digest  # of the manifest in the envelope
    size_bytes: Annotated[int, Field(ge=1, le=ENVELOPE_LIMIT_BYTES)]
    sha256: Digest  # of the envelope


class BundledFile(FileReference):
    """A file of an artifact in a bundle."""

    size_bytes: Annotated[int, Field(ge=0, le=LARGEST_FILE_BYTES)]


class BundledArtifact(Record):
    """An artifact in a bundle.  The SHA-256 of its `manifest.json` is its digest, here as everywhere."""

    name: EntryName  # of its folder: one path component that every file system takes
    files: Annotated[Many[BundledFile], Field(min_length=1, max_length=MOST_FILES)]

    @field_validator("name")
    @classmethod
    def _the_name_is_free(cls, name: str) -> str:
        if names_a_device(name) or name.casefold() in KEPT_NAMES:
            raise ValueError("the name is kept for something else")
        return name

    @model_validator(mode="after")
    def _files_are_sorted_and_hold_a_manifest(self) -> "BundledArtifact":
        names = [file.name for file in self.files]
        if names != sorted(set(names)):
            raise ValueError("files are in order of name, each once")
        if MANIFEST_FILE not in names:
            raise ValueError("every artifact has a manifest")
        if any(names_a_device(name) for name in names):
            raise ValueError("the name of a file is kept for something else")
        return self

    @property
    def digest(self) -> str:
        """The artifact's name in the world."""
        return next(file.sha256 for file in self.files if file.name == MANIFEST_FILE)


class BundleManifest(Manifest):
    """What a bundle holds, in order of name, and how it was cut."""

    KIND: ClassVar[str] = "bundle"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES

    kind: Literal["bundle"] = "bundle"
    version: Literal[1] = 1
    artifacts: Annotated[Many[BundledArtifact], Field(min_length=1, max_length=MOST_ARTIFACTS)]
    history: Annotated[Many[EarlierState], Field(max_length=MOST_EARLIER_STATES)] = ()  # of states among them
    part_bytes: PositiveInt | None  # of every part but the last; None for a single file
    # SHA-256 of each part, of the first without this index, which cannot hold its own; empty for a single file
    parts: Annotated[Many[Digest], Field(max_length=MOST_PARTS)]

    @model_validator(mode="after")
    def _artifacts_are_sorted_and_differ_by_more_than_case(self) -> "BundleManifest":
        names = [artifact.name for artifact in self.artifacts]
        if names != sorted(names):
            raise ValueError("artifacts are in order of name")
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError("two artifacts have the same name, or differ by case alone")
        return self

    @model_validator(mode="after")
    def _history_is_sorted(self) -> "BundleManifest":
        states = [earlier.state for earlier in self.history]
        if states != sorted(set(states)):
            raise ValueError("the states before are in order of digest, each once")
        return self

    def members(self) -> Iterator[Member]:
        """Every file after the index, in order."""
        for artifact in self.artifacts:
            for file in artifact.files:
                yield Member(artifact.name, file.name, file.size_bytes, file.sha256)
        for earlier in self.history:
            yield Member(HISTORY_FOLDER, history_file(earlier.state), earlier.size_bytes, earlier.sha256)

    @model_validator(mode="after")
    def _parts_have_a_size(self) -> "BundleManifest":
        if (self.part_bytes is None) != (not self.parts):
            raise ValueError("a size of parts belongs to parts")
        return self
