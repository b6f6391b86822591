"""Real media that are small or lack much: a medium of so many kilobytes, and FAT.

What is mounted here nobody else sees; where nothing can be mounted, the tests are skipped and say why.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.store.artifact import verify_artifact
from stages.store.bundle import pack
from tests import fleet
from tests.fleet import DEVICES, make_update, make_world
from tests.fleet.lacking import chainctl_mounted

SIZES = range(8, 100, 4) if "CHAINCTL_TEST_KILLS" in os.environ else [16, 40]  # KiB
STRACE = shutil.which("strace")
FAT = "mkfs.vfat -C {0}/image 4096 > {0}/log; mount -o loop {0}/image {0}/medium"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A bundle of new updates, and older ones under the same names."""
    _, state = make_world(tmp_path)
    for age in ("new", "old"):
        for seed, name in enumerate(DEVICES):
            make_update(tmp_path / age / name, state, name, seed=seed + (10 if age == "old" else 0))
    pack([tmp_path / "new" / name for name in DEVICES], tmp_path / "x.tar")
    (tmp_path / "medium").mkdir()
    return tmp_path


@pytest.mark.parametrize("kibibytes", SIZES)
def test_a_medium_that_fills_up_keeps_what_it_has(kibibytes: int, world: Path) -> None:
    """Its content is copied out at the end, as it is gone with the process that mounted it."""
    medium, after = world / "medium", world / "after"
    command = f"{sys.executable} -m chainctl bundle unpack {world}/x.tar --into {medium} --force"
    script = (
        f"mount -t tmpfs -o size={kibibytes + 40}k none {medium}; cp -r {world}/old/. {medium}; "
        f"{command} > {world}/said 2>&1 || echo failed >> {world}/said; cp -r {medium} {after}"
    )
    chainctl_mounted(script, "--help")
    said = (world / "said").read_text()
    assert "Traceback" not in said
    ages = {name: digest_age(world, after / name) for name in DEVICES}
    if "failed" in said:
        assert re.search("not enough room|No space left|is full", said), said
    assert set(ages.values()) == ({"old"} if "failed" in said else {"new"}), said
    assert sorted(path.name for path in after.iterdir()) == sorted(DEVICES)


def digest_age(world: Path, path: Path) -> str:
    found = verify_artifact(path).digest
    return next(age for age in ("new", "old") if verify_artifact(world / age / path.name).digest == found)


def test_on_fat_updates_are_unpacked_replaced_and_moved_aside(world: Path) -> None:
    if shutil.which("mkfs.vfat") is None:
        pytest.skip("no mkfs.vfat: install dosfstools")
    if not any(line.split()[-1] == "vfat" for line in Path("/proc/filesystems").read_text().splitlines()):
        pytest.skip("this kernel has no FAT")
    medium, after = world / "medium", world / "after"
    chainctl, round_ = f"{sys.executable} -m chainctl", f"--plan {world}/plan --state {world}/state"
    script = "; ".join(
        [
            FAT.format(world),
            f"cp -r {world}/old/. {medium}",
            f"mkdir {medium}/evil",
            f"echo {{}} > {medium}/evil/manifest.json",
            f"{chainctl} bundle unpack {world}/x.tar --into {medium} --force",
            f"{chainctl} aggregate {medium} {round_} --out {world}/next",
            f"cp -r {medium} {after}",
        ]
    )
    done = chainctl_mounted(script, "--help")
    assert done.returncode == 0, done.stderr
    assert verify_artifact(world / "next").manifest.accepted_count == len(DEVICES)
    assert {digest_age(world, after / name) for name in DEVICES} == {"new"}
    assert [path.name.rpartition("-")[0] for path in (after / ".refused").glob("*.json")] == ["evil-unreadable"]


@pytest.mark.skipif(STRACE is None, reason="no strace")
@pytest.mark.skipif("CHAINCTL_TEST_KILLS" not in os.environ, reason="takes long: 'just faults' runs it")
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("call", ["renameat", "renameat2", "unlinkat", "mkdirat", "fsync"])
def test_a_tracer_that_kills_at_every_system_call_loses_nothing(call: str, exchanges: bool, world: Path) -> None:
    assert STRACE is not None
    refused = [] if exchanges else ["-e", "inject=renameat2:error=EINVAL"]
    if call == "renameat2" and not exchanges:
        pytest.skip("it is refused")
    kills = 0
    for number in range(1, 100):
        shutil.rmtree(world / "into", ignore_errors=True)
        shutil.copytree(world / "old", world / "into")
        tracer = [STRACE, "-f", "-qq", "-o", os.devnull, *refused, "-e", f"inject={call}:signal=KILL:when={number}"]
        command = [*tracer, sys.executable, "-m", "chainctl", "bundle", "unpack", str(world / "x.tar")]
        options = ["--into", str(world / "into"), "--force"]
        done = subprocess.run([*command, *options], cwd=fleet.ROOT, capture_output=True, check=False)
        if done.returncode == 0:
            break
        kills += 1
        fleet.chainctl("verify", world / "into" / "nothing", check=False)
        ages = {digest_age(world, world / "into" / name) for name in DEVICES}
        assert ages <= {"old", "new"}
    print(f"{call}, {'exchange' if exchanges else 'no exchange'}: {kills} kills, 0 lost")
