"""What operating systems leave among updates and in artifacts counts for nothing, and is never carried on."""

import json
import shutil
from pathlib import Path

import pytest

from schemas.errors import NotTrusted
from stages.federated.delivery import RefusedUpdate
from stages.store.artifact import artifact_bytes, existing, verify_artifact
from stages.store.bundle import pack, unpack
from stages.store.debris import is_debris
from stages.store.lineage import index
from tests import fleet
from tests.fleet import DEVICES, chainctl, combine, make_update, make_world

FILES = (".DS_Store", "._manifest.json", "desktop.ini", "Thumbs.db", "DESKTOP.INI", "Icon\r", ".nfs0001", ".apdisk")
FOLDERS = (
    *("System Volume Information", "$RECYCLE.BIN", ".Trashes", ".Trash-1000", ".Spotlight-V100", ".fseventsd"),
    *("lost+found", "@eaDir", "__MACOSX"),
)


def litter(folder: Path) -> None:
    """Everything that every system leaves, in every folder."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in FILES:
            (place / name).write_bytes(b"\0\5\x16\7")
        for name in FOLDERS:
            (place / name).mkdir(exist_ok=True)
            (place / name / "manifest.json").write_text("{}")


def without(folder: Path, names: tuple[str, ...] = (*FILES, *FOLDERS)) -> None:
    assert not [path for path in folder.rglob("*") if path.name in names]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A round whose updates came on sticks that three systems looked at."""
    _, state = make_world(tmp_path)
    for seed, name in enumerate(DEVICES):
        make_update(tmp_path / "in" / name, state, name, seed=seed)
    shutil.copytree(tmp_path, tmp_path / "clean")
    litter(tmp_path / "in")
    return tmp_path


# The templates macOS, Windows and Linux of github/gitignore, and Synology's folder, but for what one user put there.
LISTED = """.DS_Store .AppleDouble .apdisk .Trashes .Spotlight-V100 .fseventsd .TemporaryItems .DocumentRevisions-V100
.VolumeIcon.icns .localized __MACOSX desktop.ini Desktop.ini Thumbs.db ehthumbs.db $RECYCLE.BIN RECYCLER lost+found
.directory @eaDir ._manifest.json .Trash-1000 .nfs0000000000a1 .fuse_hidden0000"""


@pytest.mark.parametrize("name", [*LISTED.split(), "Icon\r", "System Volume Information"])
def test_what_operating_systems_leave_is_ignored_by_name(name: str) -> None:
    assert is_debris(name)


@pytest.mark.parametrize("name", ["manifest.json", "device-00", "Thumbs", "ds_store", "nfs", ".refused"])
def test_other_names_are_not_ignored(name: str) -> None:
    assert not is_debris(name)


def test_a_round_closes_with_every_honest_update(world: Path) -> None:
    seen: list[RefusedUpdate] = []
    inbox = world / "in"
    made = combine(world, [inbox, *sorted(inbox.iterdir())], on_refusal=lambda refused, place: seen.append(refused))
    assert seen == []
    assert made.digest == combine(world / "clean", [world / "clean" / "in"]).digest
    assert not (inbox / ".refused").exists()


def test_an_artifact_is_whole_and_as_large_as_before_and_other_files_are_still_refused(world: Path) -> None:
    dirty, clean = world / "in" / "a", world / "clean" / "in" / "a"
    assert verify_artifact(dirty).digest == verify_artifact(clean).digest
    assert artifact_bytes(dirty) == artifact_bytes(clean)
    assert existing(dirty, type(verify_artifact(dirty).manifest), same=lambda there: True, force=False)
    (dirty / "notes.txt").write_text("")
    with pytest.raises(NotTrusted, match="does not list"):
        verify_artifact(dirty)


def test_a_bundle_has_the_same_bytes_and_carries_nothing_of_it(world: Path) -> None:
    pack(sorted((world / "in").iterdir()), world / "dirty.tar")
    pack(sorted((world / "clean" / "in").iterdir()), world / "clean.tar")
    assert (world / "dirty.tar").read_bytes() == (world / "clean.tar").read_bytes()
    unpack(world / "dirty.tar", world / "unpacked")
    without(world / "unpacked")
    litter(world / "unpacked")
    assert not any(one.is_new for one in unpack(world / "dirty.tar", world / "unpacked"))


def test_verify_and_status_and_log_take_a_whole_folder(world: Path) -> None:
    combine(world, [world / "in"])
    done = chainctl("verify", *sorted((world / "in").iterdir()), "--json")
    assert [Path(one["path"]).name for one in json.loads(done.stdout)["artifacts"]] == list(DEVICES)
    litter(world)
    assert chainctl("status", world, check=False).returncode == 7
    assert chainctl("log", world / "next").returncode == 0
    assert set(index([world / "in"])) == set(index([world / "clean" / "in"]))


def test_profiles_are_planned_and_a_run_is_begun_among_them(tiny_bert: Path, tmp_path: Path) -> None:
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    for name in ("a", "b"):
        fleet.run_profile(tiny_bert, data, fleet.settings(), tmp_path / "profiles" / name, device=name)
    litter(tmp_path / "profiles")
    paths = sorted((tmp_path / "profiles").iterdir())
    planned, _ = fleet.run_plan(paths, tiny_bert, fleet.settings(), tmp_path / "plan", tmp_path / "state")
    assert planned.manifest.device_count == 2
