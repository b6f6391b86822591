"""`--log-format jsonl`: stderr is a log of events that a program reads, and stdout stays what it is."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chainctl.cli import app
from chainctl.events import EventLog
from schemas.events import Event, Failed, Finished, LogEvent, Progressed, RoundDone, Said, SimulationBegun, Started
from schemas.run import SimulationSummary
from stages.store.artifact import read_manifest
from tests import fleet
from tests.fleet import Done

JSONL = ("--log-format", "jsonl")
HOSTILE = 'zz\x1b]0;owned\x07\n{"event": "finished"}\u202e'


def events(done: Done) -> list[Event]:
    """Every line of stderr, as strictly as the schema reads it."""
    assert done.stderr.isascii()
    return [LogEvent.model_validate_json(line).root for line in done.stderr.splitlines()]


def of(kind: type[Any], found: list[Event]) -> list[Any]:
    return [event for event in found if isinstance(event, kind)]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Path, Done]:
    """A simulation of two rounds that logs."""
    folder = tmp_path_factory.mktemp("logged")
    train = fleet.save_texts(folder / "train.jsonl", fleet.texts(30))
    recipe = fleet.write_recipe(folder / "recipe.toml", fleet.settings())
    done = fleet.chainctl(
        *("simulate", "--model", tiny_bert, "--data", train, "--test", train, "--recipe", recipe, "--iid"),
        *("--devices", 2, "--rounds", 2, "--out", folder / "run", *JSONL),
    )
    return folder, done


def test_a_simulation_is_events_that_fit_the_schema(simulated: tuple[Path, Done]) -> None:
    folder, done = simulated
    found = events(done)
    summary = read_manifest(folder / "run" / "summary.json", SimulationSummary)
    assert isinstance(found[0], Started)
    assert found[0].command == "simulate"
    assert isinstance(found[-1], Finished)
    assert found[-1].exit_code == 0
    (begun,) = of(SimulationBegun, found)
    assert (begun.plan, begun.rounds, begun.accuracy) == (summary.plan, 2, summary.accuracy_before)
    rounds = of(RoundDone, found)
    assert [
        {name: getattr(one, name) for name in dict(line)} for one, line in zip(rounds, summary.rounds, strict=True)
    ] == [dict(line) for line in summary.rounds]
    assert of(Progressed, found)
    assert [event.time for event in found] == sorted(event.time for event in found)
    assert all(json.loads(line)["time"].endswith("Z") for line in done.stderr.splitlines())


def test_stdout_is_what_it_is_without_a_log(simulated: tuple[Path, Done]) -> None:
    folder, done = simulated
    lines = [line.line() for line in read_manifest(folder / "run" / "summary.json", SimulationSummary).rounds]
    assert [line for line in done.stdout.splitlines() if line.startswith("round")] == lines
    assert [one.text for one in of(Said, events(done))] == done.stdout.splitlines()[2:]


def test_no_text_is_logged(simulated: tuple[Path, Done]) -> None:
    folder, done = simulated
    said = done.stderr + done.stdout
    assert not [row for row in fleet.texts(30) if row["text"] in said]
    assert str(folder / "train.jsonl") not in done.stderr


def test_with_json_stdout_holds_the_object_and_stderr_the_events(tmp_path: Path) -> None:
    update = fleet.write_update(tmp_path / "update")
    plain = fleet.chainctl("inspect", update.path, "--json")
    done = fleet.chainctl("inspect", update.path, "--json", *JSONL)
    assert done.stdout == plain.stdout
    assert [one.text for one in of(Said, events(done))] == plain.stderr.splitlines()


def test_quiet_logs_nothing_but_errors(tmp_path: Path) -> None:
    update = fleet.write_update(tmp_path / "update")
    assert fleet.chainctl("inspect", update.path, "--quiet", *JSONL).stderr == ""
    refused = fleet.chainctl("inspect", tmp_path / "absent", "-q", *JSONL, check=False)
    assert [type(event) for event in events(refused)] == [Failed]


@pytest.mark.parametrize("given", [JSONL, ("--log-format=jsonl",), ()])
def test_the_log_is_asked_for_by_flag_or_environment(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINCTL_LOG_FORMAT", "text" if given else "jsonl")
    assert events(fleet.chainctl("data", "columns", tmp_path, *given, check=False))
    monkeypatch.setenv("CHAINCTL_LOG_FORMAT", "jsonl")
    said = fleet.chainctl("data", "columns", tmp_path, "--log-format", "text", check=False).stderr
    assert said.startswith("error: ")


def test_an_error_is_an_event_with_its_parts_and_hostile_names_are_strings(tmp_path: Path) -> None:
    done = fleet.chainctl("data", "columns", tmp_path / HOSTILE, *JSONL, check=False)
    plain = json.loads(fleet.chainctl("data", "columns", tmp_path / HOSTILE, "--json", check=False).stdout)["error"]
    found = events(done)
    assert [type(event) for event in found] == [Started, Failed, Finished]
    (failed,) = of(Failed, found)
    assert HOSTILE in failed.fact + "".join(failed.values.values())
    assert {name: getattr(failed, name) for name in plain} == plain
    assert found[-1].exit_code == done.returncode == failed.exit_code  # type: ignore[union-attr]


def test_a_name_that_is_not_utf8_is_an_event_too(tmp_path: Path) -> None:
    done = fleet.chainctl("inspect", os.fsdecode(os.fsencode(tmp_path) + b"/ab\xff"), *JSONL, check=False)
    (failed,) = of(Failed, events(done))
    assert r"ab\udcff" in failed.fact


def test_what_cannot_be_parsed_and_what_libraries_write_are_warnings() -> None:
    done = fleet.chainctl_process("simulate", "--no-such-option", *JSONL, check=False)
    found = events(done)
    assert done.returncode == 2
    assert {event.level for event in found} == {"warning"}
    assert any("no-such-option" in event.text for event in found)  # type: ignore[union-attr]


def test_progress_is_at_most_one_event_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    log = EventLog(sys.stderr)
    for hundredths in range(0, 350, 10):
        monkeypatch.setattr("time.monotonic", lambda now=hundredths / 100: now)
        log.progress("steps", hundredths, 350)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["done"]) for line in lines] == [
        ("progress", 0),
        ("progress", 100),
        ("progress", 200),
        ("progress", 300),
    ]


def test_the_schema_of_events_is_printed() -> None:
    printed = CliRunner().invoke(app, ["schema", "log-event"])
    assert json.loads(printed.output)["discriminator"]["propertyName"] == "event"


def test_lines_of_several_threads_are_whole_however_stderr_is_buffered() -> None:
    receiving, sending = os.pipe()
    stream = io.TextIOWrapper(os.fdopen(sending, "wb", buffering=0), write_through=True)  # as with PYTHONUNBUFFERED
    log = EventLog(stream)
    with ThreadPoolExecutor(4) as pool, os.fdopen(receiving) as written:
        reading = pool.submit(written.read)
        for told in [pool.submit(log.write, "told\n" * 200) for _ in range(3)]:
            told.result()
        log.writelines(["a line ", "of a library\n"])
        stream.close()
        found = [LogEvent.model_validate_json(line).root for line in reading.result().splitlines()]
    assert [getattr(one, "text", "") for one in found] == ["told"] * 600 + ["a line of a library"]


def test_a_dry_run_begins_and_ends_in_the_log_as_the_command_does(tmp_path: Path) -> None:
    command = ("model", "random", "--like", "llama-2-7b", "--out", tmp_path / "model", "--dry-run")
    found = events(fleet.chainctl(*command, *JSONL))
    assert [type(event) for event in (found[0], found[-1])] == [Started, Finished]
    assert found[0].command == "model random"  # type: ignore[union-attr]
    assert fleet.chainctl(*command, "--quiet", *JSONL).stderr == ""
    (tmp_path / "model").mkdir()
    refused = events(fleet.chainctl(*command, *JSONL, check=False))
    assert [type(event) for event in refused] == [Started, Failed, Finished]
