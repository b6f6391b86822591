"""A bundle is its artifacts to the byte, whatever tar says, or it is refused and nothing of it is left."""

import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fast
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.base import canonical_json
from schemas.bundle import BundledArtifact, BundledFile, BundleManifest
from schemas.errors import BadInput, ChainError, NotTrusted, UsageProblem
from stages.store import files
from stages.store.artifact import verify_artifact
from stages.store.bundle import entry_names, pack, unpack
from stages.store.bundle_file import open_bundle
from stages.store.ustar import header, padding
from tests import fleet
from tests.fleet import ZERO

FUZZ = int(os.environ.get("CHAINCTL_TEST_FUZZ", "300"))
PART = 3300  # the index of the three artifacts takes 3072

fuzzed = fast(max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(out: Path, *, device: str = "phone", elements: int = 100) -> Path:
    """A small update artifact."""
    values = np.random.default_rng(elements).standard_normal(elements).astype(np.float32)
    return fleet.write_update(out, {"head.weight": values}, device=device).path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def outcome(bundle: Path, into: Path, **options: Any) -> dict[str, bytes] | ChainError:
    """What unpacking gives: the files, or the refusal."""
    try:
        unpack(bundle, into, **options)
    except ChainError as error:
        return error
    return contents(into)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return [make(folder / name, device=name, elements=size) for name, size in (("a", 100), ("b", 128), ("c", 600))]


@pytest.fixture(scope="module")
def whole(artifacts: list[Path]) -> dict[str, bytes]:
    return contents(artifacts[0].parent)


@pytest.fixture(scope="module")
def bundle(artifacts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("bundle") / "x.tar"
    pack(artifacts, out)
    return out.read_bytes()


def index_of(bundle: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        member = tar.extractfile("bundle.json")
        assert member is not None
        parsed: dict[str, Any] = json.load(member)
        return parsed


def with_index(bundle: bytes, index: object) -> bytes:
    """The same payload behind another index."""
    old, new = (canonical_json(value) for value in (index_of(bundle), index))
    head = header("bundle.json", len(new)) + new + padding(len(new))
    return head + bundle[512 + len(old) + len(padding(len(old))) :]


# What is packed is unpacked.


def test_what_is_packed_is_unpacked_to_the_byte(bundle: bytes, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bundle)
    unpacked = unpack(tmp_path / "x.tar", tmp_path / "into")
    assert contents(tmp_path / "into") == whole
    assert entries(tmp_path / "into") == ["a", "b", "c"]
    for one in unpacked:
        assert one.is_new
        assert verify_artifact(tmp_path / "into" / one.name).digest == one.artifact.digest
        assert one.artifact.path == tmp_path / "into" / one.name


def test_any_tar_lists_and_extracts_it(bundle: bytes, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bundle)
    listed = subprocess.run(["tar", "tf", tmp_path / "x.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["bundle.json", *sorted(whole)]
    assert listed.stderr == ""
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.extractall(tmp_path / "python", filter="data")
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "x.tar", "-C", tmp_path / "gnu"], check=True)
    for folder in (tmp_path / "python", tmp_path / "gnu"):
        (folder / "bundle.json").unlink()
        assert contents(folder) == whole


def test_headers_are_the_same_bytes_with_every_python() -> None:
    assert hashlib.sha256(header("device-01/manifest.json", 1234)).hexdigest() == (
        "d59ef377d417c2cecf8482c7b9e93ceac1c1b687d8aa9eba01f016a89f1918a6"
    )
    assert hashlib.sha256(header(f"{'n' * 64}/{'f' * 64}", 8**11 - 1)).hexdigest() == (
        "653e97e954a13ec9011a09321084e2b24788f44af8987dd0ea3cb45fd41186f2"
    )


@pytest.mark.parametrize("part_bytes", [None, PART])
def test_the_order_of_directories_makes_no_difference(
    part_bytes: int | None, artifacts: list[Path], tmp_path: Path
) -> None:
    for number, order in enumerate([artifacts, artifacts[::-1], [*artifacts[1:], *artifacts]]):
        pack(order, tmp_path / str(number) / "x", part_bytes=part_bytes)
    first, second, third = (contents(tmp_path / str(number)) for number in range(3))
    assert first == second == third


def test_what_is_packed_again_is_left_alone(artifacts: list[Path], tmp_path: Path) -> None:
    for name, part_bytes in (("x", None), ("y", PART)):
        assert pack(artifacts, tmp_path / name, part_bytes=part_bytes).is_new
        before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
        again = pack(artifacts, tmp_path / name, part_bytes=part_bytes)
        assert not again.is_new
        assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
        with pytest.raises(UsageProblem, match="another bundle"):
            pack(artifacts[:1], tmp_path / name, part_bytes=part_bytes)
        assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_force_replaces_a_bundle_and_every_part_of_an_older_one(artifacts: list[Path], tmp_path: Path) -> None:
    pack(artifacts, tmp_path / "x", part_bytes=PART)
    assert len(entries(tmp_path)) > 4
    pack(artifacts[:1], tmp_path / "x", part_bytes=PART, force=True)
    replaced = entries(tmp_path)
    pack(artifacts[:1], tmp_path / "x", force=True)
    pack(artifacts[:1], tmp_path / "x", part_bytes=PART, force=True)
    assert entries(tmp_path) == replaced
    assert 1 < len(replaced) < 5
    pack(artifacts, tmp_path / "x", force=True)
    assert entries(tmp_path) == ["x"]
    pack(artifacts[:2], tmp_path / "x", force=True)
    pack(artifacts, tmp_path / "x", part_bytes=PART, force=True)
    assert entries(tmp_path)[0] == "x.001"
    assert len(unpack(tmp_path / "x", tmp_path / "into")) == 3


def test_an_extra_file_that_artifacts_allow_is_carried(artifacts: list[Path], tmp_path: Path) -> None:
    without = shutil.copytree(artifacts[0], tmp_path / "a")
    (without / "measured.json").unlink()
    pack([without], tmp_path / "x")
    unpack(tmp_path / "x", tmp_path / "into")
    assert entries(tmp_path / "into" / "a") == ["manifest.json", "tensors.safetensors"]


# Names.


def test_directories_of_the_same_name_are_led_by_their_parents_name() -> None:
    paths = [Path("/run/updates/0000/phone"), Path("/run/updates/0001/phone"), Path("/run/plan")]
    assert list(entry_names(paths)) == ["0000-phone", "0001-phone", "plan"]
    assert entry_names(paths) == entry_names(paths[::-1]) == entry_names([*paths, *paths])
    assert list(entry_names([Path("/run/states/0000"), Path("/run/evals/0000")])) == ["evals-0000", "states-0000"]
    assert list(entry_names([Path("/one/Phone"), Path("/two/phone")])) == ["one-Phone", "two-phone"]


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(UsageProblem, match="same name"):
        entry_names([Path("/one/updates/phone"), Path("/two/updates/phone")])
    with pytest.raises(UsageProblem, match="same name"):
        entry_names([Path("/a/b"), Path("/c/b"), Path("/d/a-B")])


@pytest.mark.parametrize(
    "name", ["bundle.json", "History", "NUL", "con.old", "a b", "ä", ".a", "a.", "a:b", "-a", "n" * 65, "a\\b"]
)
def test_a_name_that_a_stick_cannot_hold_is_refused(name: str, artifacts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="stick"):
        entry_names([Path("/run") / name])
    with pytest.raises(ValidationError):
        BundledArtifact(name=name, files=(BundledFile(name="manifest.json", size_bytes=1, sha256=ZERO),))
    shutil.copytree(artifacts[0], tmp_path / name)
    with pytest.raises(UsageProblem):
        pack([tmp_path / name], tmp_path / "x.tar")
    assert entries(tmp_path) == [name]


# What is packed.


def test_what_is_no_whole_artifact_is_not_packed(artifacts: list[Path], tmp_path: Path) -> None:
    altered = shutil.copytree(artifacts[1], tmp_path / "b")
    (altered / "tensors.safetensors").write_bytes((altered / "tensors.safetensors").read_bytes()[:-1] + b"~")
    (tmp_path / "empty").mkdir()
    linked = shutil.copytree(artifacts[2], tmp_path / "c")
    (linked / "measured.json").unlink()
    (linked / "measured.json").symlink_to(artifacts[2] / "measured.json")
    for folder in (altered, tmp_path / "empty", tmp_path / "none", linked):
        with pytest.raises(ChainError):
            pack([artifacts[0], folder], tmp_path / "x.tar")
    assert entries(tmp_path) == ["b", "c", "empty"]


def test_a_file_altered_while_it_is_packed_is_refused(artifacts: list[Path], tmp_path: Path) -> None:
    index = BundleManifest(
        artifacts=(
            BundledArtifact(
                name="a",
                files=tuple(
                    BundledFile(name=path.name, size_bytes=path.stat().st_size, sha256=ZERO)
                    for path in sorted(artifacts[0].iterdir())
                ),
            ),
        ),
        part_bytes=None,
        parts=(),
    )
    from stages.store import bundle as module

    with pytest.raises(NotTrusted, match="while it was packed"):
        module._write(index, {f"a/{path.name}": path for path in artifacts[0].iterdir()}, [tmp_path / "x"])


def test_nothing_is_put_inside_an_artifact(artifacts: list[Path], bundle: bytes, tmp_path: Path) -> None:
    folder = shutil.copytree(artifacts[0], tmp_path / "a")
    (tmp_path / "x.tar").write_bytes(bundle)
    with pytest.raises(UsageProblem, match="is an artifact"):
        pack([folder], folder / "x.tar")
    with pytest.raises(UsageProblem, match="is an artifact"):
        unpack(tmp_path / "x.tar", folder)
    with pytest.raises(UsageProblem, match="not a directory"):
        unpack(tmp_path / "x.tar", tmp_path / "x.tar")
    verify_artifact(folder)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_file_is_never_replaced_by_a_bundle(force: bool, artifacts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").symlink_to(artifacts[0])
    for name in ("x", "y"):
        with pytest.raises(UsageProblem, match="not a file"):
            pack(artifacts, tmp_path / name, force=force)
    assert entries(tmp_path) == ["x", "y"]
    with pytest.raises(UsageProblem, match="name of a part"):
        pack(artifacts, tmp_path / "x.001", force=force)


# What is there already.


def test_what_is_there_already_is_left_alone_and_the_rest_comes(
    bundle: bytes, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(bundle)
    unpack(tmp_path / "x.tar", tmp_path / "into")
    shutil.rmtree(tmp_path / "into" / "b")
    kept = (tmp_path / "into" / "a").stat().st_ino
    again = unpack(tmp_path / "x.tar", tmp_path / "into")
    assert [one.is_new for one in again] == [False, True, False]
    assert (tmp_path / "into" / "a").stat().st_ino == kept
    assert contents(tmp_path / "into") == whole


def other_artifact(place: Path) -> None:
    make(place, device="other")


def other_measure(place: Path) -> None:
    (place / "measured.json").unlink()


def altered_tensor(place: Path) -> None:
    path = place / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"~")


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_folder(place: Path) -> None:
    (place / "mine").mkdir(parents=True)


def a_link(place: Path) -> None:
    place.symlink_to(place.parent.parent / "elsewhere")


@pytest.mark.parametrize("there", [other_artifact, other_measure, altered_tensor, a_file, a_folder, a_link])
def test_something_else_that_is_there_is_refused_and_replaced_only_by_force(
    there: Callable[[Path], None], artifacts: list[Path], bundle: bytes, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(bundle)
    (tmp_path / "into").mkdir()
    elsewhere = shutil.copytree(artifacts[1], tmp_path / "elsewhere")
    if there in (other_measure, altered_tensor):
        shutil.copytree(artifacts[1], tmp_path / "into" / "b")
    there(tmp_path / "into" / "b")
    before = contents(tmp_path / "into")
    with pytest.raises(UsageProblem, match="--force"):
        unpack(tmp_path / "x.tar", tmp_path / "into")
    assert contents(tmp_path / "into") == before
    assert entries(tmp_path / "into") == ["b"]
    unpack(tmp_path / "x.tar", tmp_path / "into", force=True)
    assert contents(tmp_path / "into") == whole
    assert entries(tmp_path / "into") == ["a", "b", "c"]
    verify_artifact(elsewhere)


@pytest.mark.parametrize("force", [False, True])
def test_a_refused_bundle_leaves_what_was_there(
    force: bool, bundle: bytes, artifacts: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(bundle[:-1500] + b"?" + bundle[-1499:])  # in the last file: all others are right
    into = tmp_path / "into"
    shutil.copytree(artifacts[0], into / "a")
    (into / "mine").write_text("mine")
    before = contents(into)
    with pytest.raises(NotTrusted):
        unpack(tmp_path / "x.tar", into, force=force)
    assert contents(into) == before
    assert entries(into) == ["a", "mine"]


# Attacks with real tar archives.


def archive(bundle: bytes, edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], form: int) -> bytes:
    """The bundle as tarfile writes it after `edit` changed its members; sizes are made to agree where they can."""
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        for member in tar:
            content = tar.extractfile(member)
            members.append((member, content.read() if content else b""))
    edit(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data) if data else None)
    return out.getvalue().rstrip(b"\0").ljust(len(bundle), b"\0")


def renamed(name: str) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[1][0].name = name

    return edit


def retyped(kind: bytes, target: str = "") -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member = members[1][0]
        member.type, member.linkname, member.size = kind, target, 0
        members[1] = (member, b"")

    return edit


def twice(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.insert(2, members[1])


def one_more(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    member = tarfile.TarInfo("a/evil")
    member.size = 4
    members.append((member, b"evil"))


def one_less(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.pop()


def swapped(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[1], members[4] = members[4], members[1]


def index_last(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.append(members.pop(0))


def with_rights(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[1][0].mode = 0o6755


def with_owner(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[1][0].uname = "root"


def with_time(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[1][0].mtime = 1


def with_pax(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[1][0].pax_headers = {"path": "../evil"}


def first_with_pax(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[0][0].pax_headers = {"comment": "x"}


ATTACKS = {
    "traversal": renamed("../evil"),
    "deep traversal": renamed("a/../../evil"),
    "absolute": renamed("/tmp/evil"),
    "another folder": renamed("evil/manifest.json"),
    "long name": renamed("a/" + "n" * 300),
    "symlink": retyped(tarfile.SYMTYPE, "/etc/passwd"),
    "hardlink": retyped(tarfile.LNKTYPE, "bundle.json"),
    "character device": retyped(tarfile.CHRTYPE),
    "block device": retyped(tarfile.BLKTYPE),
    "fifo": retyped(tarfile.FIFOTYPE),
    "directory": retyped(tarfile.DIRTYPE),
    "contiguous": retyped(tarfile.CONTTYPE),
    "sparse": retyped(tarfile.GNUTYPE_SPARSE),
    "twice": twice,
    "one more": one_more,
    "one less": one_less,
    "swapped": swapped,
    "index last": index_last,
    "rights": with_rights,
    "owner": with_owner,
    "time": with_time,
    "pax": with_pax,
    "first with pax": first_with_pax,
}


# What a format of tar has no words for: names of that length, and pax headers.
UNSAID = {("long name", tarfile.USTAR_FORMAT), ("pax", tarfile.USTAR_FORMAT), ("first with pax", tarfile.USTAR_FORMAT)}
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("attack", "form"), [(attack, form) for attack in ATTACKS for form in FORMS if (attack, form) not in UNSAID]
)
def test_a_hostile_archive_is_refused(attack: str, form: int, bundle: bytes, tmp_path: Path) -> None:
    data = archive(bundle, ATTACKS[attack], form)
    assert data != bundle
    for number, tried in enumerate([data, data[: len(bundle)]]):
        (tmp_path / f"{number}.tar").write_bytes(tried)
        assert isinstance(outcome(tmp_path / f"{number}.tar", tmp_path / "into"), BadInput | NotTrusted)
    assert entries(tmp_path) == ["0.tar", "1.tar"]


def test_the_archive_that_tarfile_makes_without_an_edit_is_the_bundle(bundle: bytes) -> None:
    assert archive(bundle, lambda members: None, tarfile.USTAR_FORMAT) == bundle


def an_entry(name: str) -> dict[str, Any]:
    return {"name": name, "files": [{"name": "manifest.json", "size_bytes": 0, "sha256": ZERO}]}


def an_earlier_state(number: int) -> dict[str, Any]:
    return {"state": f"sha256:{number:064x}", "size_bytes": 512, "sha256": ZERO}


INDEXES: dict[str, Callable[[dict[str, Any]], None]] = {
    "traversal": lambda index: index["artifacts"][0].update(name=".."),
    "path": lambda index: index["artifacts"][0].update(name="a/b"),
    "absolute": lambda index: index["artifacts"][0].update(name="/a"),
    "empty name": lambda index: index["artifacts"][0].update(name=""),
    "newline": lambda index: index["artifacts"][0].update(name="a\n"),
    "nul": lambda index: index["artifacts"][0].update(name="a\0"),
    "hidden": lambda index: index["artifacts"][0].update(name=".a"),
    "device": lambda index: index["artifacts"][0].update(name="aux"),
    "file traversal": lambda index: index["artifacts"][0]["files"][1].update(name="../measured.json"),
    "upper-case file": lambda index: index["artifacts"][0]["files"][1].update(name="Measured.json"),
    "twice": lambda index: index["artifacts"].insert(0, index["artifacts"][0]),
    "twice by case": lambda index: index["artifacts"].insert(0, {**index["artifacts"][0], "name": "A"}),
    "unsorted": lambda index: index["artifacts"].reverse(),
    "unsorted files": lambda index: index["artifacts"][0]["files"].reverse(),
    "file twice": lambda index: index["artifacts"][0]["files"].insert(0, index["artifacts"][0]["files"][0]),
    "no manifest": lambda index: index["artifacts"][0]["files"].pop(0),
    "no artifact": lambda index: index["artifacts"].clear(),
    "no file": lambda index: index["artifacts"][0]["files"].clear(),
    "17 files": lambda index: index["artifacts"][0].update(
        files=[{"name": f"f{n:02d}", "size_bytes": 0, "sha256": ZERO} for n in range(16)]
        + index["artifacts"][0]["files"][:1]
    ),
    "10,000 entries": lambda index: index.update(artifacts=[an_entry(f"a{n:05d}") for n in range(10_000)]),
    "4,097 entries": lambda index: index.update(artifacts=[an_entry(f"a{n:05d}") for n in range(4097)]),
    "negative size": lambda index: index["artifacts"][0]["files"][0].update(size_bytes=-512),
    "petabytes": lambda index: index["artifacts"][0]["files"][0].update(size_bytes=2**50),
    "size as a text": lambda index: index["artifacts"][0]["files"][0].update(size_bytes="1"),
    "gigabytes": lambda index: index["artifacts"][0]["files"][0].update(size_bytes=8**11 - 1),
    "larger by a block": lambda index: index["artifacts"][0]["files"][0].update(size_bytes=4000),
    "parts": lambda index: index.update(part_bytes=4096, parts=[ZERO]),
    "a size of parts": lambda index: index.update(part_bytes=4096),
    "another version": lambda index: index.update(version=2),
    "another kind": lambda index: index.update(kind="update"),
    "unknown field": lambda index: index.update(more=1),
    "an artifact in the place of the history": lambda index: index["artifacts"].append(an_entry("history")),
    "a history that is not there": lambda index: index.update(history=[an_earlier_state(0)]),
    "a history of petabytes": lambda index: index.update(history=[an_earlier_state(0) | {"size_bytes": 2**50}]),
    "1,025 earlier states": lambda index: index.update(history=[an_earlier_state(n) for n in range(1025)]),
    "an earlier state twice": lambda index: index.update(history=[an_earlier_state(0)] * 2),
    "an earlier state by a path": lambda index: index.update(history=[an_earlier_state(0) | {"state": "../x"}]),
}


@pytest.mark.parametrize("attack", INDEXES)
def test_a_hostile_index_is_refused(attack: str, bundle: bytes, tmp_path: Path) -> None:
    index = index_of(bundle)
    INDEXES[attack](index)
    (tmp_path / "x.tar").write_bytes(with_index(bundle, index))
    assert isinstance(outcome(tmp_path / "x.tar", tmp_path / "into"), BadInput | NotTrusted)
    assert entries(tmp_path) == ["x.tar"]


def test_an_index_that_is_rewritten_to_fit_altered_content_meets_the_artifacts_own_hashes(
    bundle: bytes, tmp_path: Path
) -> None:
    index = index_of(bundle)
    reference = index["artifacts"][0]["files"][2]
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        offset = tar.getmember("a/tensors.safetensors").offset_data
    content = bundle[offset : offset + reference["size_bytes"] - 1] + b"?"
    reference["sha256"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    forged = with_index(bundle[:offset] + content + bundle[offset + len(content) :], index)
    (tmp_path / "x.tar").write_bytes(forged)
    with open_bundle(tmp_path / "x.tar", limit_bytes=2**30) as opened:
        opened.read(None)  # the bundle itself is in order
    refused = outcome(tmp_path / "x.tar", tmp_path / "into")
    assert isinstance(refused, NotTrusted)
    assert "x.tar, a/tensors.safetensors was altered" in refused.fact
    assert ".partial" not in str(refused)
    assert entries(tmp_path) == ["x.tar"]


def test_a_file_that_no_artifact_may_hold_is_refused(artifacts: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(artifacts[0], tmp_path / "a")
    from stages.store import bundle as module

    files = module._files(folder)
    (folder / "run.sh").write_text("evil")
    extra = BundledFile(name="run.sh", size_bytes=4, sha256=f"sha256:{hashlib.sha256(b'evil').hexdigest()}")
    entry = BundledArtifact(name="a", files=tuple(sorted((*files, extra), key=lambda file: file.name)))
    index = BundleManifest(artifacts=(entry,), part_bytes=None, parts=())
    module._write(index, {f"a/{path.name}": path for path in folder.iterdir()}, [tmp_path / "x.tar"])
    refused = outcome(tmp_path / "x.tar", tmp_path / "into")
    assert isinstance(refused, NotTrusted)
    assert "does not list" in refused.fact
    assert entries(tmp_path) == ["a", "x.tar"]


@pytest.mark.parametrize(
    "field",
    [
        b"77777777777\0",
        b"00040000001\0",
        b"\x80" + (2**50).to_bytes(11, "big"),
        b"-0000000001\0",
        b"           \0",
        bytes(12),
    ],
    ids=["8 GiB", "above the limit", "petabytes in base 256", "negative", "blank", "zero"],
)
def test_a_first_header_that_claims_any_size_allocates_nothing(field: bytes, bundle: bytes, tmp_path: Path) -> None:
    block = bytearray(bundle[:512])
    block[124:136] = field
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(bytes(block) + bundle[512:])
    tracemalloc.start()
    assert isinstance(outcome(tmp_path / "x.tar", tmp_path / "into"), BadInput | NotTrusted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20
    assert entries(tmp_path) == ["x.tar"]


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    make(tmp_path / "large", elements=16 * 2**20)
    tracemalloc.start()
    pack([tmp_path / "large"], tmp_path / "x", part_bytes=20 * 2**20)
    unpack(tmp_path / "x", tmp_path / "into")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert contents(tmp_path / "into") == {f"large/{n}": b for n, b in contents(tmp_path / "large").items()}


def test_a_bundle_above_the_limit_is_refused_before_it_is_read(bundle: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bundle[:4096])  # the limit speaks before the missing bytes do
    with pytest.raises(BadInput, match="more than is allowed") as caught:
        unpack(tmp_path / "x.tar", tmp_path / "into", limit_bytes=len(bundle) - 1)
    assert "--limit" in caught.value.hint
    (tmp_path / "x.tar").write_bytes(bundle)
    assert len(unpack(tmp_path / "x.tar", tmp_path / "into", limit_bytes=len(bundle))) == 3


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.with_name("whole.tar"))


@pytest.mark.parametrize("what", [pipe, link, Path.mkdir, lambda path: None, Path.touch])
def test_what_is_no_regular_file_is_refused(what: Callable[[Path], None], bundle: bytes, tmp_path: Path) -> None:
    (tmp_path / "whole.tar").write_bytes(bundle)
    what(tmp_path / "x.tar")
    assert isinstance(outcome(tmp_path / "x.tar", tmp_path / "into"), BadInput | NotTrusted)
    assert not (tmp_path / "into").exists()


# Altered bytes.


def test_an_altered_byte_in_every_region_is_refused(bundle: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for position in range(0, len(bundle), 37):
        path.write_bytes(bundle[:position] + bytes([bundle[position] ^ 1]) + bundle[position + 1 :])
        with pytest.raises((BadInput, NotTrusted)), open_bundle(path, limit_bytes=2**30) as opened:
            opened.read(None)


@pytest.mark.parametrize("ending", [b"\0", bytes(512), bytes(10240), b"x", b"PK\5\6"])
def test_trailing_bytes_are_refused(ending: bytes, bundle: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bundle + ending)
    with pytest.raises(NotTrusted, match="truncated or altered"):
        unpack(tmp_path / "x.tar", tmp_path / "into")
    assert entries(tmp_path) == ["x.tar"]


@fast(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_bundle_cut_short_anywhere_is_refused(share: float, bundle: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(bundle[: int(share * len(bundle))])
    assert isinstance(outcome(tmp_path / "x.tar", tmp_path / "into"), BadInput | NotTrusted)
    assert entries(tmp_path) == ["x.tar"]


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One change of a file: a flipped bit, bytes put in, taken out, doubled, moved or overwritten, an end cut off."""
    kind = draw(st.sampled_from(["flip", "insert", "delete", "cut", "double", "move", "overwrite", "digit"]))
    place, other = draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True))
    length = draw(st.sampled_from([1, 2, 12, 100, 511, 512, 513, 1024, 2048]))
    data = draw(st.binary(min_size=1, max_size=16))

    def change(old: bytes) -> bytes:
        at, elsewhere = int(place * len(old)), int(other * len(old))
        piece = old[at : at + length]
        return {
            "flip": lambda: old[:at] + bytes([old[at] ^ (1 << length % 8)]) + old[at + 1 :] if old else old,
            "insert": lambda: old[:at] + data + old[at:],
            "delete": lambda: old[:at] + old[at + length :],
            "cut": lambda: old[:at],
            "double": lambda: old[:at] + piece + old[at:],
            "move": lambda: (rest := old[:at] + old[at + length :])[:elsewhere] + piece + rest[elsewhere:],
            "overwrite": lambda: old[:elsewhere] + piece + old[elsewhere + len(piece) :],
            "digit": lambda: old[:at] + (b"%d" % (length % 10)) + old[at + 1 :],
        }[kind]()

    return change


@fuzzed
@given(changes=st.lists(mutations(), min_size=1, max_size=4))
def test_any_mutation_gives_the_very_artifacts_or_a_refusal_and_leaves_nothing(
    changes: list[Callable[[bytes], bytes]], bundle: bytes, whole: dict[str, bytes], tmp_path: Path
) -> None:
    data = bundle
    for change in changes:
        data = change(data)
    (tmp_path / "x.tar").write_bytes(data)
    result = outcome(tmp_path / "x.tar", tmp_path / "into")
    if isinstance(result, ChainError):
        assert entries(tmp_path) == ["x.tar"]
    else:
        assert result == whole
        assert data == bundle
        shutil.rmtree(tmp_path / "into")


@fuzzed
@given(changes=st.lists(mutations(), min_size=1, max_size=3), end=st.booleans())
def test_any_mutation_of_the_index_gives_the_very_artifacts_or_a_refusal(
    changes: list[Callable[[bytes], bytes]], end: bool, bundle: bytes, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Here the header and the padding fit the altered index, so that its own rules are what refuses."""
    old = canonical_json(index_of(bundle))
    new = old
    for change in changes:
        new = change(new)
    data = header("bundle.json", len(new)) + new + padding(len(new)) + bundle[512 + len(old) + len(padding(len(old))) :]
    (tmp_path / "x.tar").write_bytes(data[: len(bundle)] if end else data)
    result = outcome(tmp_path / "x.tar", tmp_path / "into")
    if isinstance(result, ChainError):
        assert entries(tmp_path) == ["x.tar"]
    else:
        assert result == whole
        shutil.rmtree(tmp_path / "into")


# Parts.


@pytest.fixture
def split(artifacts: list[Path], tmp_path: Path) -> list[Path]:
    return list(pack(artifacts, tmp_path / "x", part_bytes=PART).paths)


def test_parts_joined_are_a_tar(split: list[Path], whole: dict[str, bytes]) -> None:
    joined = b"".join(path.read_bytes() for path in split)
    assert {path.stat().st_size for path in split[:-1]} == {PART}
    with tarfile.open(fileobj=io.BytesIO(joined)) as tar:
        assert [member.name for member in tar] == ["bundle.json", *sorted(whole)]


@pytest.mark.parametrize("name", ["x", "x.001", "x.003"])
def test_a_split_bundle_is_found_by_any_of_its_names(
    name: str, split: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert len(split) > 3
    assert outcome(tmp_path / name, tmp_path / "into") == whole


@pytest.mark.parametrize("part_bytes", [3072, 3073, 3583, 3584, 4096, 5000, 100_000])
def test_any_size_of_parts_that_holds_the_index_will_do(
    part_bytes: int, artifacts: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    paths = pack(artifacts, tmp_path / "x", part_bytes=part_bytes).paths
    assert all(path.stat().st_size <= part_bytes for path in paths)
    assert outcome(tmp_path / "x", tmp_path / "into") == whole


@pytest.mark.parametrize("part_bytes", [1, 511, 3071])
def test_parts_that_cannot_hold_the_index_are_refused(part_bytes: int, artifacts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="too small"):
        pack(artifacts, tmp_path / "x", part_bytes=part_bytes)
    assert entries(tmp_path) == []


def test_more_than_999_parts_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", elements=2**21)
    with pytest.raises(UsageProblem, match="too small"):
        pack([tmp_path / "a"], tmp_path / "x", part_bytes=8192)
    assert entries(tmp_path) == ["a"]


def test_a_missing_part_is_named(split: list[Path], tmp_path: Path) -> None:
    for path in split:
        path.rename(tmp_path / "aside")
        refused = outcome(tmp_path / "x", tmp_path / "into")
        assert isinstance(refused, BadInput)
        assert f"{path} is missing" in refused.fact or path == split[0]
        (tmp_path / "aside").rename(path)
    assert not (tmp_path / "into").exists()


def test_swapped_parts_are_named(split: list[Path], tmp_path: Path) -> None:
    split[1].rename(tmp_path / "aside")
    split[2].rename(split[1])
    (tmp_path / "aside").rename(split[2])
    refused = outcome(tmp_path / "x", tmp_path / "into")
    assert isinstance(refused, NotTrusted)
    assert refused.fact.startswith(str(split[1]))
    assert not (tmp_path / "into").exists()


def test_parts_of_another_bundle_are_named(split: list[Path], artifacts: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(artifacts[2], tmp_path / "other" / "c")
    (other / "measured.json").unlink()
    foreign = pack([*artifacts[:2], other], tmp_path / "other" / "x", part_bytes=PART).paths
    for path, stranger in zip(split[1:], foreign[1:], strict=False):
        kept = path.read_bytes()
        if kept == stranger.read_bytes():
            continue
        path.write_bytes(stranger.read_bytes())
        refused = outcome(tmp_path / "x", tmp_path / "into")
        assert isinstance(refused, NotTrusted)
        assert refused.fact.startswith(str(path))
        path.write_bytes(kept)
    assert not (tmp_path / "into").exists()


def test_an_altered_byte_names_its_part(split: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(split):
        kept = path.read_bytes()
        for position in (*range(0 if number else 3072, len(kept), 211), len(kept) - 1):
            path.write_bytes(kept[:position] + bytes([kept[position] ^ 0x80]) + kept[position + 1 :])
            refused = outcome(tmp_path / "x", tmp_path / "into")
            assert isinstance(refused, ChainError)
            assert refused.fact.startswith(str(path)), (number, position)
        path.write_bytes(kept)
    assert not (tmp_path / "into").exists()


def test_a_part_of_another_size_is_named(split: list[Path], tmp_path: Path) -> None:
    for path in split:
        kept = path.read_bytes()
        for changed in (kept[:-1], kept + b"\0"):
            path.write_bytes(changed)
            refused = outcome(tmp_path / "x", tmp_path / "into")
            assert isinstance(refused, NotTrusted)
            assert refused.fact.startswith(str(path))
        path.write_bytes(kept)


def test_a_part_too_many_is_named(split: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.900").write_bytes(split[1].read_bytes())
    refused = outcome(tmp_path / "x", tmp_path / "into")
    assert isinstance(refused, BadInput)
    assert refused.fact.startswith(str(tmp_path / "x.900"))


def test_a_link_in_place_of_a_part_is_refused(split: list[Path], tmp_path: Path) -> None:
    split[2].rename(tmp_path / "aside")
    split[2].symlink_to(tmp_path / "aside")
    refused = outcome(tmp_path / "x", tmp_path / "into")
    assert isinstance(refused, BadInput)
    assert refused.fact.startswith(str(split[2]))


def test_a_first_part_by_another_name_says_so(split: list[Path], tmp_path: Path) -> None:
    split[0].rename(tmp_path / "y")
    refused = outcome(tmp_path / "y", tmp_path / "into")
    assert isinstance(refused, BadInput)
    assert "first part" in refused.fact


# Killed.


def ends_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at the `number`-th rename: nothing is cleaned up for what took its place before."""
    real, left = files._put_in_place, iter([True] * number)

    def put(*arguments: Any, **options: Any) -> None:
        if not next(left, False):
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(files, "_put_in_place", put)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_unpack_that_ended_between_two_artifacts_is_continued(
    number: int, bundle: bytes, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(bundle)
    with monkeypatch.context() as patch:
        ends_after(number, patch)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "x.tar", tmp_path / "into")
    there = entries(tmp_path / "into") if (tmp_path / "into").exists() else []
    assert len(there) == number
    again = unpack(tmp_path / "x.tar", tmp_path / "into")
    assert [one.name for one in again if not one.is_new] == there
    assert contents(tmp_path / "into") == whole


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("older", [False, True])
def test_a_pack_that_ended_between_two_parts_never_looks_whole_and_is_continued(
    older: bool, number: int, artifacts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:
        pack(artifacts[1:], tmp_path / "x", part_bytes=PART)
    with monkeypatch.context() as patch:
        ends_after(number, patch)
        with pytest.raises(KeyboardInterrupt):
            pack(artifacts, tmp_path / "x", part_bytes=PART, force=older)
    assert not (tmp_path / "x.001").exists()
    assert isinstance(outcome(tmp_path / "x", tmp_path / "into"), BadInput)
    assert pack(artifacts, tmp_path / "x", part_bytes=PART).is_new
    assert len(unpack(tmp_path / "x", tmp_path / "into")) == 3


def test_parts_of_a_stranger_are_no_leftovers(artifacts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.002").write_text("mine")
    with pytest.raises(UsageProblem, match=r"x\.002"):
        pack(artifacts, tmp_path / "x", part_bytes=PART)
    assert contents(tmp_path) == {"x.002": b"mine"}


STEPS: dict[str, Callable[[Path, int], object]] = {
    "unpack into one place": lambda folder, number: unpack(folder / "x", folder / "into", force=True),
    "unpack into many places": lambda folder, number: unpack(folder / "x", folder / f"into-{number}"),
    "pack": lambda folder, number: pack(
        sorted((folder / "from").iterdir()), folder / "y", part_bytes=200_000 + number, force=True
    ),
}


def again_and_again(step: str, folder: Path, ready: Event) -> None:
    ready.set()
    for number in itertools.count():
        STEPS[step](folder, number)


def killed(step: str, folder: Path, seconds: float) -> None:
    context = multiprocessing.get_context("fork")  # a start of Python would be most of what there is to kill
    ready = context.Event()
    process = context.Process(target=again_and_again, args=(step, folder, ready))
    process.start()
    assert ready.wait(60)
    time.sleep(seconds)
    assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def unhidden(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_moment_every_artifact_is_whole_or_absent_and_the_next_run_sweeps(
    step: str, tmp_path: Path
) -> None:
    draw = random.Random(step)
    for number in range(6):
        make(tmp_path / "from" / f"device-{number}", device=f"d{number}", elements=100_000)
    pack(list((tmp_path / "from").iterdir()), tmp_path / "x")
    for _ in range(6):
        killed(step, tmp_path, 0.15 * draw.random())
        for into in tmp_path.glob("into*"):
            for artifact in unhidden(into):
                verify_artifact(artifact)
            unpack(tmp_path / "x", into)
            assert contents(into) == contents(tmp_path / "from")
            shutil.rmtree(into)
        if step == "pack":
            pack(list((tmp_path / "from").iterdir()), tmp_path / "y", force=True)
            assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()
            assert entries(tmp_path) == ["from", "x", "y"]


def test_a_full_or_small_medium_is_explained(
    artifacts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise OSError(number, "")

        return fail

    for number, says in ((errno.ENOSPC, "full"), (errno.EFBIG, "so large")):
        with monkeypatch.context() as patch:
            patch.setattr(files, "_sync_tree", full(number))
            with pytest.raises(UsageProblem, match=says):
                pack(artifacts, tmp_path / "x")
    assert entries(tmp_path) == []
