"""What a power cut leaves, after every single step of every write.

A recorder notes what is made durable: the content of a file when it is synced, the entries of a directory when that
is synced.  After each step it builds what a disk would hold that lost everything else (`strict`), and what a disk
would hold that kept all names but no data that was not synced (`names`): journalling file systems do that.  SIGKILL
shows neither.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import NotTrusted
from schemas.ledger import Planned
from schemas.state import StateManifest
from stages.store import files, filesystem
from stages.store.artifact import MANIFEST_FILE, verify_artifact
from stages.store.files import complete_directory, write_file
from stages.store.ledger import Ledger
from tests import fleet
from tests.fleet import DEVICES, ROOT, combine, flip, make_update, make_world
from tests.fleet import write_update as make

Check = Callable[[Path], None]


class Disk:
    """What of `root` would survive, and a check of it after each step."""

    def __init__(self, root: Path, scratch: Path, check: Check) -> None:
        self.root, self.scratch, self.check = root, scratch, check
        self.contents: dict[int, bytes] = {}
        self.entries: dict[int, dict[str, tuple[int, bool]]] = {}
        self.held: list[int] = []  # open descriptors, so that no inode is used twice
        self.views = 0
        for folder, names, others in os.walk(root):
            for path in [Path(folder), *(Path(folder) / name for name in [*names, *others])]:
                self.sync(path)

    def sync(self, path: Path) -> None:
        """`path` is durable as it is now."""
        if path.is_symlink() or not path.exists():
            return
        self.held.append(os.open(path, os.O_RDONLY))
        inode = path.stat().st_ino
        if path.is_dir():
            self.entries[inode] = listing(path)
        else:
            self.contents[inode] = path.read_bytes()

    def step(self) -> None:
        """Cut the power here, in both ways."""
        for names in (False, True):
            view = self.scratch / "view"
            shutil.rmtree(view, ignore_errors=True)
            self._build(self.root.stat().st_ino, view, self.root if names else None)
            self.check(view)
            self.views += 1

    def _build(self, inode: int, target: Path, now: Path | None) -> None:
        target.mkdir()
        for name, (child, is_directory) in (listing(now) if now else self.entries.get(inode, {})).items():
            if is_directory:
                self._build(child, target / name, now / name if now else None)
            else:
                (target / name).write_bytes(self.contents.get(child, b""))


def listing(path: Path) -> dict[str, tuple[int, bool]]:
    with os.scandir(path) as entries:
        return {entry.name: (entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries}


@contextmanager
def power_cuts(root: Path, scratch: Path, check: Check) -> Iterator[Disk]:
    """Check what a power cut would leave of `root` after every sync, rename and removal of the block."""
    disk = Disk(root, scratch, check)
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        disk.sync(Path(f"/proc/self/fd/{descriptor}").readlink())
        disk.step()

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            disk.step()
            return result

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        for name in ("rename", "replace"):
            patch.setattr(os, name, stepping(getattr(os, name)))
        patch.setattr(files, "exchange", stepping(filesystem.exchange))
        try:
            yield disk
            disk.step()
        finally:
            for descriptor in disk.held:
                os.close(descriptor)
    assert disk.views > 6


def digests(path: Path) -> str:
    return verify_artifact(path).digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_a_new_artifact_is_whole_or_absent_and_stays_once_it_was_said_to_be_there(root: Path, tmp_path: Path) -> None:
    def check(view: Path) -> None:
        if (view / "a").exists():
            verify_artifact(view / "a")

    with power_cuts(root, tmp_path, check) as disk:
        made = make(root / "a")
        disk.check = lambda view: assert_equal(digests(view / "a"), made.digest)


def assert_equal(found: object, expected: object) -> None:
    assert found == expected


def test_a_replaced_artifact_is_the_old_one_or_the_new_never_neither(root: Path, tmp_path: Path) -> None:
    old = make(root / "a").digest
    seen: set[str] = set()
    with power_cuts(root, tmp_path, lambda view: seen.add(digests(view / "a"))) as disk:
        new = make(root / "a", device="another", force=True).digest
        disk.check = lambda view: assert_equal(digests(view / "a"), new)
    assert seen == {old, new}


def test_without_exchange_a_kill_between_two_renames_is_mended_by_the_next_writer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system cannot swap two directories, the old one is out of its place for a moment; never lost."""
    old = make(root / "a").digest
    monkeypatch.setattr(files, "exchange", lambda left, right, folder: False)
    rename, renames = os.rename, 0

    def killed(source: Any, target: Any, **options: Any) -> None:
        nonlocal renames
        renames += 1
        if renames == 2:
            raise KeyboardInterrupt
        rename(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            make(root / "a", device="another", force=True)
    files.sweep(root / "a")
    assert digests(root / "a") == old
    new = make(root / "a", device="another", force=True).digest
    assert digests(root / "a") == new
    assert [path.name for path in root.iterdir()] == ["a"]


def test_a_replaced_file_is_the_old_one_or_the_new(root: Path, tmp_path: Path) -> None:
    (root / "f").write_bytes(b"old")
    seen: set[bytes] = set()
    with power_cuts(root, tmp_path, lambda view: seen.add((view / "f").read_bytes())) as disk:
        write_file(root / "f", b"new")
        disk.check = lambda view: assert_equal((view / "f").read_bytes(), b"new")
    assert seen == {b"old", b"new"}


def test_a_write_that_is_not_synced_would_be_found_out(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The recorder itself: without the sync of the tree it shows an artifact without its bytes."""
    monkeypatch.setattr(files, "_sync_tree", lambda directory: None)

    def check(view: Path) -> None:
        if (view / "a").exists():
            assert (view / "a" / "x").read_bytes() == b"whole"

    def write() -> None:
        with power_cuts(root, tmp_path, check), complete_directory(root / "a", force=False) as partial:
            (partial / "x").write_bytes(b"whole")

    with pytest.raises((AssertionError, FileNotFoundError)):
        write()


def test_every_line_of_a_ledger_that_was_said_to_be_written_is_there(root: Path, tmp_path: Path) -> None:
    ledger = Ledger(root / "ledger.jsonl")
    written = 0

    def check(view: Path) -> None:
        assert len(list(Ledger(view / "ledger.jsonl").events())) >= written

    with power_cuts(root, tmp_path, check):
        for number in range(4):
            digest = f"sha256:{number:064x}"
            ledger.planned(digest, digest, 1)
            written = number + 1
    assert all(isinstance(event, Planned) for event in ledger.events())


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_anywhere_is_taken_away_and_said_again(cut: int, root: Path) -> None:
    ledger = Ledger(root / "ledger.jsonl")
    for number in range(2):
        ledger.planned(f"sha256:{number:064x}", f"sha256:{number:064x}", 0)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-cut])
    assert len(list(ledger.events())) == 1
    ledger.planned("sha256:" + f"{1:064x}", f"sha256:{1:064x}", 0)
    assert ledger.path.read_bytes() == whole
    ledger.path.write_bytes(whole[: -cut - 1] + b"\n")
    with pytest.raises(NotTrusted):
        list(ledger.events())


def test_a_round_survives_a_cut_at_every_step(root: Path, tmp_path: Path) -> None:
    """A whole `aggregate` with one update to be refused: nothing that came is lost, nothing half is there."""
    _, state = make_world(root)
    paths = [make_update(root / "in" / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    flip(paths[1] / "tensors.safetensors", -2)
    arrived = {path.name: (path / MANIFEST_FILE).read_bytes() for path in paths}
    new = ""

    def check(view: Path) -> None:
        verify_artifact(view / "plan")
        verify_artifact(view / "state")
        if (view / "next").exists():
            verify_artifact(view / "next")
        events = list(Ledger(view / "ledger.jsonl").events())
        assert (view / "next").exists() or all(event.event != "closed" for event in events)
        if new:
            assert digests(view / "next") == new
            assert [event.event for event in events] == ["refused", "accepted", "accepted", "closed"]
        for name, manifest in arrived.items():
            places = [view / "in" / name, *(view / "in" / ".refused").glob(f"{name}-altered-????????")]
            kept = [place / MANIFEST_FILE for place in places if (place / MANIFEST_FILE).exists()]
            assert any(place.read_bytes() == manifest for place in kept), name

    with power_cuts(root, tmp_path, check) as disk:
        made = combine(root, [root / "in"])
        new = made.digest
        assert isinstance(made.manifest, StateManifest)
        assert fleet.accepted_devices(made) == ["a", "c"]
    assert disk.views > 30


# A disk that takes no more.

FULL = (
    "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
    "from chainctl.cli import main; sys.argv = ['chainctl', *sys.argv[3:]]; main()\n"
)


@pytest.mark.parametrize("limit", [0, 1, 100, 1000, 4000, 6000])
@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_the_old_or_nothing_and_says_so(limit: int, force: bool, tmp_path: Path) -> None:
    """Every file that a command writes may grow to `limit` bytes only; the state takes 7 kB, the ledger 2."""
    _, state = make_world(tmp_path, width=32)
    paths = [make_update(tmp_path / "in" / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    before = combine(tmp_path, paths[:1]).digest if force else ""
    arguments = ["aggregate", tmp_path / "in", "--plan", tmp_path / "plan", "--state", tmp_path / "state"]
    command = [sys.executable, "-c", FULL, str(ROOT), str(limit), *map(str, arguments), "--out", str(tmp_path / "next")]
    done = subprocess.run([*command, *(["--force"] if force else [])], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "Traceback" not in done.stderr
    assert (digests(tmp_path / "next") == before) if force else not (tmp_path / "next").exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert all(verify_artifact(path) for path in paths)
    made = combine(tmp_path, [tmp_path / "in"], force=force)
    assert made.manifest.accepted_count == 3
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_read_only_disk_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    make_update(tmp_path / "a", state, "a", seed=0)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "chainctl", "aggregate", str(tmp_path / "a"), "--plan", str(tmp_path / "plan")),
            *("--state", str(tmp_path / "state"), "--out", "/proc/chainctl/next"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 3
    assert "/proc/chainctl" in done.stderr
    assert "Traceback" not in done.stderr
