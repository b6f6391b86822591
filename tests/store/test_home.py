"""What is below a chainctl home survives commands that change it at the same time.

Each command is a process of its own, and all of them wait at a lock that the test holds: they begin together.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from schemas.errors import UsageProblem
from stages.store.home import LOCK_FILE, locked_home
from stages.store.signing import KeyRing
from stages.store.trust import Trust
from tests import fleet
from tests.fleet.lacking import compile_library

WRITER = (
    "import sys; from pathlib import Path\n"
    "from stages.store.home import locked_home\n"
    "home = Path(sys.argv[1])\n"
    "with locked_home(home):\n"
    "    count = home / 'count'\n"
    "    found = int(count.read_text()) if count.exists() else 0\n"
    "    count.write_text('')\n"
    "    count.write_text(str(found + 1))\n"
)


def start(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=fleet.ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_at_once(home: Path, commands: Iterable[Sequence[str]], **environment: str) -> list[fleet.Done]:
    """Start all, which wait for the lock; then let them go."""
    environment |= {"CHAINCTL_HOME": str(home)}
    with locked_home(home):
        running = [start("-m", "chainctl", *command, **environment) for command in commands]
        with pytest.raises(subprocess.TimeoutExpired):
            running[-1].wait(timeout=1)
    ended = [(process, *process.communicate()) for process in running]
    return [fleet.Done(process.args, process.returncode, out, err) for process, out, err in ended]


def test_who_changes_a_home_is_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    with locked_home(home):
        writers = [start("-c", WRITER, home) for _ in range(8)]
        with pytest.raises(subprocess.TimeoutExpired):
            writers[0].wait(timeout=1)
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 8, errors
    assert (home / "count").read_text() == "8"


def test_of_one_name_at_once_one_key_is_made_and_kept(tmp_path: Path) -> None:
    done = run_at_once(tmp_path, [["keys", "new", "same"]] * 6)
    assert sorted(one.returncode for one in done) == [0, 2, 2, 2, 2, 2]
    made = next(one.stdout.strip() for one in done if one.returncode == 0)
    assert all("exists already" in one.stderr for one in done if one.returncode)
    keys = KeyRing(tmp_path)
    assert made == keys.open("same").public == (tmp_path / "keys" / "same.pub").read_text().strip()
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["same.pem", "same.pub"]


def test_pins_of_many_commands_at_once_are_all_kept_and_all_removed(tmp_path: Path) -> None:
    keys, trust = KeyRing(tmp_path / "elsewhere"), Trust(tmp_path / "home")
    public = {f"office-{number}": keys.new(f"office-{number}").public for number in range(8)}
    added = run_at_once(trust.home, [["trust", "add", *pin] for pin in public.items()])
    assert [one.returncode for one in added] == [0] * 8
    assert {pin.name: pin.key for pin in trust.pins()} == public
    removed = run_at_once(trust.home, [["trust", "remove", name] for name in [*public][1:]])
    assert [one.returncode for one in removed] == [0] * 7
    assert [pin.name for pin in trust.pins()] == ["office-0"]


def test_of_two_keys_under_one_name_at_once_one_is_pinned(tmp_path: Path) -> None:
    keys, trust = KeyRing(tmp_path / "elsewhere"), Trust(tmp_path / "home")
    public = [keys.new(name).public for name in ("a", "b", "c")]
    done = run_at_once(trust.home, [["trust", "add", "office", key] for key in public])
    assert sorted(one.returncode for one in done) == [0, 2, 2]
    pinned = next(key for key, one in zip(public, done, strict=True) if one.returncode == 0)
    assert [pin.key for pin in trust.pins()] == [pinned]
    assert all(pinned in one.stderr for one in done if one.returncode)


def test_a_public_key_that_a_kill_prevented_follows_from_the_private_one(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path)
    made = keys.new("device").public
    (tmp_path / "keys" / "device.pub").unlink()
    assert list(keys.public_keys()) == [("device", made)]
    with pytest.raises(UsageProblem, match="already"):
        keys.new("device")
    assert keys.open("device").public == made


def test_a_public_key_alone_is_not_written_over(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path)
    made = keys.new("device").public
    (tmp_path / "keys" / "device.pem").rename(tmp_path / "kept.pem")
    with pytest.raises(UsageProblem, match="already"):
        keys.new("device")
    assert (tmp_path / "keys" / "device.pub").read_text().strip() == made


def test_without_locks_no_change_is_lost_without_a_word(tmp_path: Path) -> None:
    """As on a network: a command that finds another's lock says so, and succeeds when it is run again."""
    library = compile_library(tmp_path)
    lacking = {"LD_PRELOAD": str(library), "LACKING": "flock=38"}
    public = KeyRing(tmp_path / "elsewhere").new("office").public
    home = tmp_path / "home"
    home.mkdir()
    held = home / LOCK_FILE
    held.touch()
    for command in (["keys", "new", "a"], ["trust", "add", "office", public]):
        held.touch()
        refused = start("-m", "chainctl", *command, CHAINCTL_HOME=str(home), **lacking)
        assert str(held) in refused.communicate()[1]
        assert refused.returncode == 2
        held.unlink()
        again = start("-m", "chainctl", *command, CHAINCTL_HOME=str(home), **lacking)
        assert "note: " in again.communicate()[1]
        assert again.returncode == 0
    assert KeyRing(home).names() == ["a"]
    assert [pin.key for pin in Trust(home).pins()] == [public]
    assert not held.exists()


def test_nobody_else_writes_what_this_machine_trusts_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with locked_home(tmp_path / "home"):
            pass
        assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)
