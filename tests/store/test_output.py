"""Outputs are tried before the work: whatever is wrong with the place is said before an input is looked at."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadInput, ChainError, UsageProblem
from schemas.update import UpdateManifest
from stages.store.artifact import check_place, verify_artifact
from stages.store.bundle import pack, unpack
from stages.store.filesystem import EXCHANGE
from stages.store.output import check_output
from tests import fleet
from tests.fleet import DEVICES, chainctl, make_update, make_world, write_update
from tests.fleet.lacking import chainctl_mounted


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# What is tried, and that nothing is left.


@pytest.mark.parametrize("place", ["out", "a/b/out", "out.tar.001", "x" * 200])
def test_a_place_that_can_be_written_is_left_as_it_was(place: str, tmp_path: Path) -> None:
    check_output(tmp_path / place, force=False)
    assert tree(tmp_path) == []
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "kept").write_text("")
    before = tree(tmp_path)
    check_output(tmp_path / place, force=True)
    assert tree(tmp_path) == before


def file_in_the_way(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "deeper" / "out"


def link_in_the_way(folder: Path) -> Path:
    (folder / "link").symlink_to("nowhere")
    return folder / "link" / "out"


def dead_link(folder: Path) -> Path:
    (folder / "out").symlink_to("nowhere")
    return folder / "out"


def file_in_its_place(folder: Path) -> Path:
    (folder / "out").write_text("")
    return folder / "out"


def long_name(folder: Path) -> Path:
    return folder / ("x" * 250)  # a hidden name beside it is longer


def no_folder_can_be_made(_folder: Path) -> Path:
    return Path("/proc/chainctl/out")


PLACES: dict[Callable[[Path], Path], tuple[type[ChainError], str]] = {
    file_in_the_way: (UsageProblem, "file is not a folder, so out cannot be put into it"),
    link_in_the_way: (UsageProblem, "link is not a folder"),
    dead_link: (UsageProblem, "is a link to something that is not there"),
    file_in_its_place: (UsageProblem, "exists already"),
    long_name: (BadInput, "cannot be written"),
    no_folder_can_be_made: (BadInput, "cannot be written"),
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_what_is_wrong_with_a_place_is_said_in_one_error(place: Callable[[Path], Path], tmp_path: Path) -> None:
    kind, fact = PLACES[place]
    out = place(tmp_path)
    before = tree(tmp_path)
    for check in (check_output, lambda out, force: check_place(out, UpdateManifest, force=force)):
        with pytest.raises(kind, match=fact) as caught:
            check(out, force=False)
        assert "another --out" in caught.value.hint
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", [dead_link, file_in_its_place], ids=lambda place: place.__name__)
def test_the_hint_force_helps(place: Callable[[Path], Path], tmp_path: Path) -> None:
    out = place(tmp_path)
    check_place(out, UpdateManifest, force=True)
    write_update(out, force=True)
    assert verify_artifact(out)
    assert not out.is_symlink()
    check_place(out, UpdateManifest, force=False)  # it may be what is wanted: that shows when the inputs are known


def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not enough room") as caught:
        check_output(tmp_path / "out", force=False, needed_bytes=2**60)
    assert caught.value.values["needed"] == f"{2**50} KiB or more"
    assert tree(tmp_path) == []


def test_what_a_killed_check_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".out.killed12.partial" / "made" / "out").mkdir(parents=True)
    check_output(tmp_path / "out", force=False)
    assert tree(tmp_path) == []


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    said = as_nobody(lambda: check_output(tmp_path / "theirs" / "out", force=False))
    assert "cannot be written" in said
    assert os.strerror(13) in said


def test_in_a_shared_folder_the_output_of_somebody_else_is_not_replaced() -> None:
    with tempfile.TemporaryDirectory() as folder:  # that of pytest is closed to others
        shared = Path(folder)
        shared.chmod(0o1777)
        (shared / "out").mkdir()
        assert "belongs to somebody else" in as_nobody(lambda: check_output(shared / "out", force=True))
        assert as_nobody(lambda: check_output(shared / "mine", force=True)) == ""
        check_output(shared / "out", force=True)


def as_nobody(function: Callable[[], object]) -> str:
    """The error that a function raises for a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            function()
        except ChainError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


# Every command that writes tries first: its other inputs are not there, and are not what is complained about.

NOWHERE = Path("nowhere")


def commands(world: Path, out: Path) -> dict[str, list[Any]]:
    round_ = ["--plan", world / "plan", "--state", world / "state"]
    model, data = ["--model", NOWHERE], ["--data", NOWHERE]
    return {
        "profile": ["profile", *model, *data, "--device", "a", "--out", out],
        "plan": ["plan", NOWHERE, *model, "--out", out, "--state", world / "first"],
        "plan, state": ["plan", NOWHERE, *model, "--out", world / "another", "--state", out],
        "train-window": ["train-window", *model, *round_, *data, "--device", "a", "--out", out],
        "aggregate": ["aggregate", NOWHERE, *round_, "--out", out],
        "eval": ["eval", *model, *round_, *data, "--out", out],
        "simulate": ["simulate", *model, *data, "--test", NOWHERE, "--out", out],
        "demo": ["demo", "--out", out],
        "export": ["export", *model, *round_, "--format", "adapterhub", "--out", out],
        "data split": ["data", "split", NOWHERE, "--devices", "2", "--iid", "--out", out],
        "data holdout": ["data", "holdout", NOWHERE, "--out", out],
        "recipe new": ["recipe", "new", out, *data],
        "model random": ["model", "random", "--like", "bert-base", "--layers", "1", "--out", out],
        "bundle pack": ["bundle", "pack", NOWHERE, "--out", out],
    }


@pytest.fixture
def world(tmp_path: Path) -> Path:
    _, state = make_world(tmp_path)
    for seed, name in enumerate(DEVICES):
        make_update(tmp_path / "in" / name, state, name, seed=seed)
    return tmp_path


@pytest.mark.parametrize("command", commands(NOWHERE, NOWHERE))
def test_every_command_tries_its_output_before_it_looks_at_its_inputs(command: str, world: Path) -> None:
    out = file_in_the_way(world)
    before = tree(world)
    done = chainctl(*commands(world, out)[command], check=False)
    assert done.returncode == 2, done.stderr
    assert f"{world / 'file'} is not a" in done.stderr
    assert done.stdout == ""
    assert tree(world) == before


def test_import_and_unpack_try_theirs_too(tiny_bert: Path, world: Path) -> None:
    out = file_in_the_way(world)
    assert "is not a folder" in chainctl("model", "import", tiny_bert, "--out", out, check=False).stderr
    pack([world / "in" / "a"], world / "a.tar")
    with pytest.raises(UsageProblem, match="is not a folder"):
        unpack(world / "a.tar", out)
    assert not list(world.rglob("*.partial"))


# Real media: nobody else sees what is mounted here.


FULL = "mount -t tmpfs -o size=64k none {0}; head -c 65536 /dev/zero > {0}/x || true"
MEDIA = [
    (FULL, "data split", "cannot be written\n  reason  No space left"),
    (FULL, "aggregate", "there is not enough room for"),
    ("mount -t tmpfs -o ro none {0}", "aggregate", "cannot be written\n  reason  Read-only file system"),
]


@pytest.mark.parametrize(("mount", "command", "fact"), MEDIA)
def test_a_medium_that_takes_nothing_is_refused_before_any_work(
    mount: str, command: str, fact: str, world: Path
) -> None:
    (world / "medium").mkdir()
    out = world / "medium" / "next"
    for dry in ([], ["--dry-run"]):
        done = chainctl_mounted(mount.format(world / "medium"), *commands(world, out)[command], *dry)
        assert done.returncode == 3
        assert fact in done.stderr
        assert str(out) in done.stderr
        assert str(NOWHERE) not in done.stderr


def test_an_output_in_the_image_of_a_container_is_replaced(world: Path) -> None:
    """overlayfs renames no folder of a lower layer: an exchange is refused, and so is putting the old one away."""
    expected = fleet.combine(world, [world / "in"], "layer/next").digest
    for name in ("upper", "medium"):
        (world / name).mkdir()
    layers = "mount -t tmpfs none {0}/upper; mkdir {0}/upper/up {0}/upper/work"
    overlay = "mount -t overlay none -o lowerdir={0}/layer,upperdir={0}/upper/up,workdir={0}/upper/work {0}/medium"
    round_ = ["--plan", world / "plan", "--state", world / "state", "--out", world / "medium" / "next"]
    command = ["aggregate", world / "in", *round_, "--force", "--json"]
    done = chainctl_mounted(f"{layers}; {overlay}".format(world), *command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == expected
    assert EXCHANGE in done.stderr


def test_a_mount_point_is_not_replaced(world: Path) -> None:
    (world / "medium" / "next").mkdir(parents=True)
    out = world / "medium" / "next"
    done = chainctl_mounted(f"mount -t tmpfs none {out}", *commands(world, out)["aggregate"], "--force")
    assert done.returncode == 2
    assert "is a mount point" in done.stderr


def test_an_update_that_a_medium_has_no_room_for_is_refused_before_the_texts_are_read(
    tiny_bert: Path, tmp_path: Path
) -> None:
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings(adapter={"reduction_factor": 1}))
    (tmp_path / "medium").mkdir()
    places = ["--plan", tmp_path / "plan", "--state", tmp_path / "state", "--device", "one", "--data", NOWHERE]
    command = ["train-window", "--model", tiny_bert, *places, "--out", tmp_path / "medium" / "one"]
    done = chainctl_mounted(f"mount -t tmpfs -o size=32k none {tmp_path / 'medium'}", *command)
    assert done.returncode == 3
    assert "not enough room" in done.stderr, done.stderr
