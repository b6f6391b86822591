"""What file systems lack is done without and said once, and the result is the same to the bit."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from stages.store.artifact import verify_artifact
from stages.store.filesystem import EXCHANGE, FILE_SYNC, FOLDER_SYNC, LOCKS, PERMISSIONS
from stages.store.ledger import Ledger
from tests import fleet
from tests.fleet import DEVICES, combine, make_update, make_world
from tests.fleet.lacking import chainctl_lacking, compile_library

LACKS = {
    f"flock={errno.ENOSYS}": [LOCKS],  # Lustre without -o flock
    f"flock={errno.ENOLCK}": [LOCKS],  # NFS without lockd
    f"flock={errno.EBADF}": [LOCKS],  # NFS: the lock of a folder
    f"chmod={errno.EPERM}": [PERMISSIONS],  # exFAT, NTFS and CIFS
    f"dirsync={errno.EINVAL}": [FOLDER_SYNC],  # CIFS
    f"filesync={errno.EINVAL}": [FILE_SYNC],
    f"exchange={errno.EINVAL}": [EXCHANGE],  # NFS, exFAT, FUSE
}
EVERYTHING = "flock=38 chmod=1 dirsync=22 filesync=22 exchange=22"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("lacking"))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A round whose updates have arrived, and an older result in its place."""
    _, state = make_world(tmp_path)
    for seed, name in enumerate(DEVICES):
        make_update(tmp_path / "in" / name, state, name, seed=seed)
    combine(tmp_path, [tmp_path / "in" / "a"], quorum=1)
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    return tmp_path


def close_round(world: Path, *more: str) -> list[object]:
    places = ["--plan", world / "plan", "--state", world / "state", "--out", world / "next"]
    return ["aggregate", world / "in", *places, "--force", *more]


@pytest.mark.parametrize("lacks", [*LACKS, EVERYTHING])
def test_what_is_lacking_is_said_once_and_changes_nothing(lacks: str, library: Path, world: Path) -> None:
    done = chainctl_lacking(library, lacks, *close_round(world, "--json"))
    assert done.returncode == 0, done.stderr
    expected = combine(world / "elsewhere", [world / "elsewhere" / "in"], force=True).digest
    assert json.loads(done.stdout)["digest"] == verify_artifact(world / "next").digest == expected
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    wanted = LACKS.get(lacks, [LOCKS, PERMISSIONS, FOLDER_SYNC, FILE_SYNC, EXCHANGE])
    assert sorted(notes) == sorted(f"note: the file system of {world} {meaning}" for meaning in wanted)
    assert not list(world.rglob("*.partial"))
    assert not list(world.rglob("*.lock"))


def test_it_is_said_before_the_work_and_not_with_quiet(library: Path, world: Path) -> None:
    shutil.rmtree(world / "in")
    (world / "in").mkdir()
    done = chainctl_lacking(library, EVERYTHING, *close_round(world))
    assert done.returncode == 6
    assert LOCKS in done.stderr.partition("error: ")[0]
    assert "note:" not in chainctl_lacking(library, EVERYTHING, *close_round(world, "--quiet")).stderr


def test_another_error_is_not_taken_for_a_lack(library: Path, world: Path) -> None:
    for failing in (f"flock={errno.EIO}", f"chmod={errno.EIO}", f"dirsync={errno.EIO}", f"exchange={errno.EIO}"):
        done = chainctl_lacking(library, failing, *close_round(world))
        assert done.returncode == 3
        assert os.strerror(errno.EIO) in done.stderr
        assert "Traceback" not in done.stderr


def test_without_locks_the_ledger_has_a_lock_file_and_the_hint_helps(library: Path, world: Path) -> None:
    lock = world / ".ledger.jsonl.lock"
    lock.touch()
    before = Ledger(world / "ledger.jsonl").path.read_bytes()
    done = chainctl_lacking(library, "flock=38", *close_round(world))
    assert done.returncode == 2
    assert str(lock) in done.stderr
    assert (world / "ledger.jsonl").read_bytes() == before
    lock.unlink()
    assert chainctl_lacking(library, "flock=38", *close_round(world)).returncode == 0
    assert len(list(Ledger(world / "ledger.jsonl").events())) > 2


def test_without_locks_what_may_be_the_work_of_another_writer_stays(library: Path, world: Path) -> None:
    other = world / ".next.other123.partial"
    other.mkdir()
    assert chainctl_lacking(library, "flock=38", *close_round(world)).returncode == 0
    assert other.is_dir()
    assert chainctl_lacking(library, "", *close_round(world)).returncode == 0
    assert not other.exists()


def test_without_locks_and_exchange_an_old_output_is_put_back_after_a_kill(library: Path, world: Path) -> None:
    old = verify_artifact(world / "next").digest
    (world / "next").rename(world / ".next.other123.old.partial")
    done = chainctl_lacking(library, EVERYTHING, "bundle", "pack", world / "state", "--out", world / "next")
    assert done.returncode == 2, done.stderr
    assert verify_artifact(world / "next").digest == old


def test_a_private_key_is_not_written_where_others_could_read_it(library: Path, tmp_path: Path) -> None:
    lacks = f"chmod={errno.EPERM} mode={0o077}"
    done = chainctl_lacking(library, lacks, "keys", "new", "device-00", CHAINCTL_HOME=str(tmp_path / "home"))
    assert done.returncode == 2, done.stderr
    assert "CHAINCTL_HOME" in done.stderr
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    done = chainctl_lacking(library, "", "keys", "new", "device-00", CHAINCTL_HOME=str(tmp_path / "another"))
    assert done.returncode == 0, done.stderr


def test_a_device_trains_where_everything_is_lacking(library: Path, tiny_bert: Path, tmp_path: Path) -> None:
    data = fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(12))
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings())
    expected = fleet.run_train(tmp_path, tiny_bert, data, tmp_path / "expected")
    places = ["--plan", tmp_path / "plan", "--state", tmp_path / "state", "--data", data, "--device", "one"]
    cache = ["--cache-dir", tmp_path / "cache"]
    command = ["train-window", "--model", tiny_bert, *places, *cache, "--out", tmp_path / "out" / "one"]
    done = chainctl_lacking(library, EVERYTHING, *command)
    assert done.returncode == 0, done.stderr
    assert verify_artifact(tmp_path / "out" / "one").digest == expected.digest
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]
