"""`status --watch`: each update is told of as it arrives, and the last one ends it with exit code 0."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from schemas.errors import BadInput
from schemas.events import Finished, LogEvent, Looked
from schemas.state import StateManifest
from stages.federated.intake import Intake, Judgement
from stages.status import Watch
from stages.store.artifact import Artifact
from stages.store.snapshot import file_sizes
from tests import fleet
from tests.fleet import combine, make_update, make_world
from tests.fleet.terminal import Terminal

HOSTILE = "zz\x1b[2J\x1b]0;owned\x07"


@pytest.fixture
def state(tmp_path: Path) -> Artifact[StateManifest]:
    """Of round 1, which waits for a, b and c, in the folder of a coordinator."""
    _, first = make_world(tmp_path / "run")
    return combine(tmp_path / "run", [make_update(tmp_path / "first", first, "a", seed=1)])


def deliver(tmp_path: Path, state: Artifact[StateManifest], device: str) -> None:
    """Made elsewhere, then there at once."""
    made = make_update(tmp_path / "made" / device, state, device, seed=ord(device))
    (tmp_path / "run" / "updates").mkdir(exist_ok=True)
    (tmp_path / "made" / device).rename(tmp_path / "run" / "updates" / device)
    assert made


@contextmanager
def watching(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "chainctl", "status", str(folder), "--watch", "--every", "0.1", *more]
    with subprocess.Popen(
        command, cwd=fleet.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().rstrip("\n")


def test_elsewhere_than_on_a_terminal_each_change_is_a_line_and_an_event(
    tmp_path: Path, state: Artifact[StateManifest]
) -> None:
    with watching(tmp_path / "run", "--log-format", "jsonl") as process:
        assert line(process.stdout) == "round 1: 0 delivered; 3 missing: a, b, c"
        deliver(tmp_path, state, "b")
        assert line(process.stdout) == "round 1: 1 delivered; 2 missing: a, c"
        (tmp_path / "run" / "updates" / HOSTILE).mkdir()
        (tmp_path / "run" / "updates" / HOSTILE / "manifest.json").write_text("{}")
        shown = line(process.stdout)
        assert shown.startswith("round 1: 1 delivered; 2 missing: a, c; 1 refused: zz")
        assert shown.isprintable()
        for device in "ac":
            deliver(tmp_path, state, device)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "delivered  a, b, c\nmissing    none\n" in out
    events = [LogEvent.model_validate_json(one).root for one in err.splitlines()]
    looked = [event for event in events if isinstance(event, Looked)]
    assert [event.delivered for event in looked][:3] == [(), ("b",), ("b",)]
    assert looked[2].refused == (f"{HOSTILE} (unreadable)",)
    assert looked[-1].missing == ()
    assert isinstance(events[-1], Finished)


def test_a_round_that_is_complete_ends_it_at_once(tmp_path: Path, state: Artifact[StateManifest]) -> None:
    for device in "abc":
        deliver(tmp_path, state, device)
    done = fleet.chainctl("status", tmp_path / "run", "--watch", "--json")
    assert json.loads(done.stdout)["waiting"] is False


def test_on_a_terminal_a_table_is_drawn_anew_and_ctrl_c_leaves_it_clean(
    tmp_path: Path, state: Artifact[StateManifest]
) -> None:
    (tmp_path / "run" / "updates" / HOSTILE).mkdir(parents=True)
    (tmp_path / "run" / "updates" / HOSTILE / "manifest.json").write_text("{}")
    command = [sys.executable, "-m", "chainctl", "status", tmp_path / "run", "--watch", "--every", "0.1"]
    with Terminal(command, columns=40, lines=12) as terminal:
        words = ["round", "delivered", "missing", "refused", "disk"]
        shown = terminal.until(lambda lines: [one.partition(" ")[0] for one in lines] == words)
        assert r"zz\x1b[2J" in shown[3]
        deliver(tmp_path, state, "b")
        terminal.until(lambda lines: "delivered  1 of 3  b" in lines)
        terminal.interrupt()
    assert terminal.exit_code == 130
    assert terminal.left[0].startswith("interrupted"), terminal.left
    assert terminal.cursor_is_shown


def test_an_update_is_read_once(
    tmp_path: Path, state: Artifact[StateManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    examine = Intake._examine

    def counting(intake: Intake, path: Path) -> Judgement:
        read.append(path.name)
        return examine(intake, path)

    monkeypatch.setattr(Intake, "_examine", counting)
    watch = Watch(tmp_path / "run")
    deliver(tmp_path, state, "a")
    first = watch.look()
    assert first is not None
    assert first.delivered == ("a",)
    while watch.look():
        pass
    assert read == ["a"]
    deliver(tmp_path, state, "b")
    second = watch.look()
    assert second is not None
    assert second.delivered == ("a", "b")
    assert watch.look() is None
    assert read == ["a", "b"]
    fleet.flip(tmp_path / "run" / "updates" / "a" / "tensors.safetensors", -1)
    third = watch.look()
    assert third is not None
    assert third.refused == ("a (altered)",)
    assert read == ["a", "b", "a"]


def test_a_round_that_was_closed_is_not_waited_for(tmp_path: Path, state: Artifact[StateManifest]) -> None:
    watch = Watch(tmp_path / "run")
    before = watch.look()
    assert before is not None
    assert before.round == 1
    deliver(tmp_path, state, "a")
    combine(tmp_path / "run", [tmp_path / "run" / "updates" / "a"], state="next", out="second")
    after = watch.look()
    assert after is not None
    assert after.round == 2


def test_what_is_no_federation_is_refused_at_the_first_look(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no federation"):
        Watch(tmp_path).look()
    assert fleet.chainctl("status", tmp_path, "--watch", check=False).returncode == 3
    assert fleet.chainctl("status", tmp_path, "--watch", "--every", "0", check=False).returncode == 2


def test_files_that_go_away_while_the_folder_is_measured_are_left_out(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1234")
    (tmp_path / "file").write_bytes(b"12")
    sizes = file_sizes(tmp_path)
    assert next(sizes) == 2
    shutil.rmtree(tmp_path / "b")
    assert list(sizes) == [4, 4]
