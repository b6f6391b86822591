"""Killed before any call that changes the file system, with and without exchange: nothing that was whole is lost.

Whatever command comes next puts back what was put away, and the same command run again ends as if it had run once.
"""

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.store.bundle import pack
from tests import fleet
from tests.fleet import DEVICES, chainctl, combine, make_update, make_world
from tests.fleet.killing import KILLED, Run, killer
from tests.fleet.lacking import compile_library

FIRST, STRIDE = (1, 1) if "CHAINCTL_TEST_KILLS" in os.environ else (5, 11)  # every call, or some of each command
NO_EXCHANGE = f"exchange={errno.EINVAL}"
LACKS = ["", NO_EXCHANGE, f"{NO_EXCHANGE} flock={errno.ENOSYS}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with killer(compile_library(tmp_path_factory.mktemp("kills"))) as kill:
        yield kill


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Updates of three devices, older ones under the same names, a bundle of each, and a state made of an older."""
    folder = tmp_path / "world"
    _, state = make_world(folder)
    for age in ("new", "old"):
        for seed, name in enumerate(DEVICES):
            make_update(folder / age / name, state, name, seed=seed + (10 if age == "old" else 0))
    pack([folder / "new" / name for name in DEVICES[:2]], folder / "new.tar")
    pack([folder / "new" / DEVICES[2]], folder / "another.tar")
    shutil.copytree(folder / "old", folder / "into", ignore=lambda _, names: {DEVICES[2]} & set(names))
    combine(folder, [folder / "old"], "states/next")
    fleet.save_texts(folder / "texts.jsonl", fleet.texts(12))
    chainctl("data", "split", folder / "texts.jsonl", "--devices", 3, "--iid", "--out", folder / "shards")
    return folder


@dataclass(frozen=True)
class Case:
    """A command line in a world; `targets` are what it replaces or makes, `next` is a command that looks at them."""

    command: Callable[[Path], list[object]]
    targets: tuple[str, ...]
    next: Callable[[Path], list[object]]


def aggregate(world: Path) -> list[object]:
    round_ = ["--plan", world / "plan", "--state", world / "state", "--out", world / "states" / "next"]
    return ["aggregate", *(world / "new" / name for name in DEVICES), *round_, "--force"]


def split(world: Path) -> list[object]:
    return ["data", "split", world / "texts.jsonl", "--devices", "2", "--iid", "--out", world / "shards"]


CASES = {
    "unpack --force": Case(
        lambda world: ["bundle", "unpack", world / "new.tar", "--into", world / "into", "--force"],
        tuple(f"into/{name}" for name in DEVICES[:2]),
        lambda world: ["bundle", "unpack", world / "another.tar", "--into", world / "into"],
    ),
    "unpack": Case(
        lambda world: ["bundle", "unpack", world / "new.tar", "--into", world / "fresh"],
        tuple(f"fresh/{name}" for name in DEVICES[:2]),
        lambda world: ["bundle", "unpack", world / "another.tar", "--into", world / "fresh"],
    ),
    "aggregate --force": Case(aggregate, ("states/next",), lambda world: ["log", world / "states" / "next"]),
    "split --force": Case(
        lambda world: [*split(world), "--force"],
        ("shards",),
        lambda world: ["data", "columns", world / "shards" / "device-00.jsonl"],
    ),
    "holdout": Case(
        lambda world: ["data", "holdout", world / "texts.jsonl", "--out", world / "held"],
        ("held",),
        lambda world: ["data", "columns", world / "texts.jsonl"],
    ),
    "pack": Case(
        lambda world: [
            *("bundle", "pack", *(world / "new" / name for name in DEVICES)),
            *("--out", world / "packed" / "x.tar", "--split", "10KiB"),
        ],
        ("packed",),
        lambda world: ["verify", world / "state"],
    ),
}


def content(path: Path) -> dict[str, bytes]:
    """Every file of a folder, by name; `measured.json` differs from run to run."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return {
        name: file.read_bytes()
        for name, file in files.items()
        if file.name != "measured.json" and not name.startswith(".")
    }


@pytest.mark.parametrize("lacks", LACKS, ids=["exchange", "none", "none, no locks"])
@pytest.mark.parametrize("name", CASES)
def test_killed_before_any_call_the_old_or_the_new_is_there(
    name: str, lacks: str, run: Run, world: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    old = {target: content(world / target) for target in case.targets if (world / target).exists()}
    shutil.copytree(world, tmp_path / "whole")
    assert run(0, *case.command(tmp_path / "whole"), lacks=lacks) == 0
    new = {target: content(tmp_path / "whole" / target) for target in case.targets}
    kills = lost = 0
    for call in calls(run, case, lacks, world, tmp_path / "here"):
        here = tmp_path / "here"
        kills += 1
        chainctl(*case.next(here), check=False)
        for target in case.targets:
            if not (here / target).exists():
                lost += target in old
            elif not (found := content(here / target)).items() <= new[target].items():
                assert found == old[target], f"{target} after call {call}"
        for lock in here.rglob("*.lock"):  # without locks the ledger has a file, and a person removes it
            lock.unlink()
        assert run(0, *case.command(here), lacks=lacks) == 0, f"again after call {call}"
        assert {target: content(here / target) for target in case.targets} == new, f"after call {call}"
        if "flock" not in lacks:
            assert not list(here.rglob("*.partial")), f"after call {call}"
    print(f"{name}: {kills} kills, {lost} lost")
    assert kills > 1
    assert lost == 0


def calls(run: Run, case: Case, lacks: str, world: Path, here: Path) -> Iterator[int]:
    """The numbers of the calls before which the command was killed; a copy of the world is as it left it."""

    def kill(call: int) -> bool:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(world, here)
        return run(call, *case.command(here), lacks=lacks) == KILLED

    return itertools.takewhile(kill, itertools.count(FIRST, STRIDE))


def test_a_dry_run_makes_no_such_call(run: Run, world: Path) -> None:
    before = {path: path.lstat() for path in world.rglob("*")}
    for name, case in CASES.items():
        assert run(1, *case.command(world), "--dry-run") == 0, name
    assert {path: path.lstat().st_mtime_ns for path in world.rglob("*")} == {
        path: info.st_mtime_ns for path, info in before.items()
    }
