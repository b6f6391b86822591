"""A simulation on a real terminal: a table that grows, and everything as plain lines when it is over."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from chainctl import watching
from chainctl.watching import RoundsTable, rounds_table
from schemas.run import RoundLine
from tests import fleet
from tests.fleet.terminal import Terminal

WATCH = """
import sys, time
from pathlib import Path
from types import SimpleNamespace as Simple
from chainctl.console import Console
from chainctl import watching
from chainctl.watching import watching
from schemas.run import RoundLine
lines, done = map(Path, sys.argv[1:])
console = Console()
with watching(console) as watcher:
    plan = Simple(digest="", manifest=Simple(settings=Simple(chain=Simple(method="chain"))))
    watcher.begin(Simple(plan=plan, rounds=40, accuracy=None, perplexity=None))
    for line in lines.read_text().splitlines():
        watcher.round(RoundLine.model_validate_json(line))
        watcher.progress("steps", 3, 4)
    while not done.exists():
        time.sleep(0.02)
console.say("over")
"""
ROUNDS = 30


def a_round(number: int, **changes: object) -> RoundLine:
    """A round of a simulation."""
    told: dict[str, object] = {
        "round": number,
        "trained": f"{number % 4}-{number % 4 + 3}",
        "devices": 5,
        "refused": {},
        "train_loss": 1 / number,
        "accuracy": 1 - 0.5 / number,
        "perplexity": None,
        "predicted_peak_bytes": 2**29,
        "seconds": 10.0,
        "peak_bytes": 2**29 + number * 2**20,
        "passes": 1000,
        "visits": 100,
        "bytes_read": 2**30,
        "bytes_up": 2**21,
        "bytes_down": 2**22,
    }
    return RoundLine.model_validate(told | changes)


def numbers(lines: list[str]) -> list[int]:
    """Of the rounds that lines of a table tell of."""
    return [int(found[1]) for line in lines if (found := re.match(r" *(\d+) ", line))]


def watching_command(folder: Path) -> list[object]:
    """Shows rounds until the file `done` is there."""
    lines = folder / "lines"
    lines.write_text("".join(f"{a_round(number).model_dump_json()}\n" for number in range(1, ROUNDS + 1)))
    return [sys.executable, "-c", WATCH, lines, folder / "done"]


@pytest.mark.parametrize(
    ("columns", "height", "head"),
    [
        (40, 10, "round  layers  accuracy  peak"),
        (80, 24, "round  layers  devices  accuracy  loss    peak     up       down     seconds"),
        (200, 12, "round  layers  devices  accuracy  loss    peak     up       down     passes  seconds"),
    ],
)
def test_the_table_fits_its_terminal_and_all_of_it_stays(columns: int, height: int, head: str, tmp_path: Path) -> None:
    with Terminal(watching_command(tmp_path), columns=columns, lines=height) as terminal:
        shown = terminal.until(
            lambda lines: lines[:1] == [head] and numbers(lines)[-1:] == [ROUNDS] and "steps" in lines[-1]
        )
        assert len(shown) <= height
        assert numbers(shown) == list(range(ROUNDS - len(numbers(shown)) + 1, ROUNDS + 1))
        assert len(numbers(shown)) == height - 4
        assert re.fullmatch(r"round 31 of 40, \d:\d\d:\d\d left", shown[-2])
        (tmp_path / "done").touch()
    assert terminal.exit_code == 0
    assert terminal.left[0] == head
    assert numbers(terminal.left) == list(range(1, ROUNDS + 1))
    assert terminal.left[-1] == "over"
    assert len(terminal.left) == ROUNDS + 2
    assert terminal.cursor_is_shown


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    with Terminal(watching_command(tmp_path), columns=200, lines=50, TERM="dumb") as terminal:
        pass
    assert terminal.left == [*(a_round(number).line() for number in range(1, ROUNDS + 1)), "over"]


def test_what_is_said_goes_where_stdout_goes_whatever_stderr_is(tmp_path: Path) -> None:
    """A bar on the terminal at stderr keeps nothing from a file at stdout."""
    (tmp_path / "done").touch()
    with Terminal(["sh", "-c", 'exec "$@" > "$0"', tmp_path / "out", *watching_command(tmp_path)]) as terminal:
        pass
    assert terminal.left == []
    assert len((tmp_path / "out").read_text().splitlines()) == ROUNDS + 1


# A real one.


def test_ctrl_c_leaves_a_clean_terminal_and_the_rounds_that_there_were(tmp_path: Path, tiny_bert: Path) -> None:
    train = fleet.save_texts(tmp_path / "train.jsonl", fleet.texts(24))
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    command = ["simulate", "--model", tiny_bert, "--data", train, "--test", train, "--recipe", recipe, "--iid"]
    command += ["--devices", "2", "--out", tmp_path / "run", "--rounds", "900"]
    with Terminal([sys.executable, "-m", "chainctl", *command], columns=200) as terminal:
        terminal.until(lambda lines: any(re.match(r"round ([2-9]|\d\d+) of 900", line) for line in lines))
        terminal.interrupt()
    assert terminal.exit_code == 130
    assert terminal.left[-1].endswith("run the same command again: it continues from what is finished")
    assert terminal.cursor_is_shown
    finished = numbers(terminal.left)
    assert finished == list(range(1, len(finished) + 1))
    assert numbers(terminal.left[-2:]) == finished[-1:]


# What the table says.


def test_rounds_that_are_left_take_what_rounds_took() -> None:
    from rich.console import Console

    now = 0.0
    table = RoundsTable(Console(), clock=lambda: now)
    table.rounds = 4
    assert table.seconds_left() is None
    table.round(a_round(1, seconds=10.0))  # an earlier run's: it took what its devices say
    now = 30.0
    table.round(a_round(2, seconds=10.0))  # 30 s with evaluation and aggregation
    now = 35.0
    assert table.seconds_left() == 20.0 * 2 - 5.0
    now = 100.0
    assert table.seconds_left() == 0.0


def test_a_column_is_there_where_it_says_something() -> None:
    columns, rows = rounds_table([a_round(1), a_round(2, refused={"norm": 2}, accuracy=None)], 200)
    assert columns.index("refused") == columns.index("devices") + 1
    assert [row[columns.index("refused")] for row in rows] == ["", "2 norm"]
    assert rows[1][columns.index("accuracy")] == ""
    assert "perplexity" not in columns
    assert rounds_table([a_round(1)], 1)[0] == []


def test_a_round_that_is_added_while_the_table_is_drawn_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    table = RoundsTable(Console(width=80))
    table.round(a_round(1))
    drawing = watching.rounds_table

    def adding(lines: Sequence[RoundLine], width: int) -> tuple[list[str], list[list[object]]]:
        table.round(a_round(2))
        assert len(lines) == 1
        return drawing(lines, width)

    monkeypatch.setattr(watching, "rounds_table", adding)
    with table.bar.console.capture() as drawn:
        table.bar.console.print(table)
    assert numbers(drawn.get().splitlines()) == [1]
