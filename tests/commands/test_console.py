"""What commands say: one JSON object on stdout with --json, people's lines beside it, errors both ways, sizes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainctl.console import Console, print_error
from chainctl.options import parse_size
from schemas.errors import BadInput, Bug, ChainError, DoesNotFit, NotTrusted, TooFewUpdates, UsageProblem, Waiting

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=False
    )


def speak(console: Console) -> None:
    console.say("training")
    console.table(["device", "texts"], [["clinic-1", 12]])
    with console.progress() as progress:
        progress("layer", 1, 2)
    console.result(path=Path("out"), labels=["bénin"], rounds=3)
    console.say("done")


# Console.


def test_with_json_stdout_holds_exactly_one_object_and_stderr_the_messages(capsys: Capture) -> None:
    speak(Console(json=True))
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {"path": "out", "labels": ["bénin"], "rounds": 3}
    assert err.splitlines() == ["training", "device    texts", "clinic-1     12", "done"]


def test_without_json_people_read_stdout_and_nothing_is_on_stderr(capsys: Capture) -> None:
    speak(Console())
    out, err = capsys.readouterr()
    assert out.splitlines() == ["training", "device    texts", "clinic-1     12", "done"]
    assert err == ""


def test_quiet_says_nothing(capsys: Capture) -> None:
    speak(Console(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_quiet_and_json_leave_the_object_alone(capsys: Capture) -> None:
    speak(Console(json=True, quiet=True))
    out, err = capsys.readouterr()
    assert json.loads(out)["rounds"] == 3
    assert err == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_the_object_survives_any_encoding_of_stdout(encoding: str) -> None:
    script = (
        "from chainctl.console import Console; Console(json=True, quiet=True).result(label='\\u826f\\u6027 \\u03bb')"
    )
    done = python("-c", script, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert json.loads(done.stdout) == {"label": "良性 λ"}


# Tables.


def test_a_table_has_words_to_the_left_and_numbers_to_the_right(capsys: Capture) -> None:
    rows: list[list[object]] = [["a", 5, 0.25, "x"], ["longer", 12345, 10.5, "yy"]]
    Console().table(["name", "count", "share", "note"], rows)
    assert capsys.readouterr().out.splitlines() == [
        "name    count  share  note",
        "a           5   0.25  x",
        "longer  12345   10.5  yy",
    ]


def test_one_word_makes_a_column_of_words(capsys: Capture) -> None:
    Console().table(["n", "v"], [[100, 1], ["-", 20]])
    assert capsys.readouterr().out.splitlines() == ["n     v", "100   1", "-    20"]


def test_a_piped_table_has_no_boxes_no_markup_and_no_wrapped_rows(capsys: Capture) -> None:
    long = "x" * 300
    Console().table(["name", "text"], [["[bold]a[/bold]", long], ["b", "short"]])
    assert capsys.readouterr().out.splitlines() == [
        "name            text",
        f"[bold]a[/bold]  {long}",
        "b               short",
    ]


def test_a_table_without_rows_is_its_head(capsys: Capture) -> None:
    Console().table(["device", "texts"], [])
    assert capsys.readouterr().out == "device  texts\n"


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text("abc", min_size=1, max_size=9), st.integers(0, 10**9), st.text("xyz", min_size=1, max_size=5)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_columns_of_any_table_are_aligned(rows: list[tuple[str, int, str]]) -> None:
    lines: list[str] = []

    class Kept(Console):
        def say_drawn(self, text: str) -> None:
            lines.append(text)

    Kept().table(["first", "second", "third"], rows)
    first = max(len("first"), *(len(row[0]) for row in rows))
    second = max(len("second"), *(len(str(row[1])) for row in rows))
    expected = [f"{a:<{first}}  {b!s:>{second}}  {c}" for a, b, c in [("first", "second", "third"), *rows]]
    assert lines == expected


# Errors.

REFUSAL = BadInput(
    "the [bold]data[/bold] differ", values={"expected": "sha256:" + "0" * 64, "found": 7}, hint="copy it again"
)


def test_an_error_says_the_fact_both_values_and_the_way_out_on_stderr(capsys: Capture) -> None:
    print_error(REFUSAL, as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: the [bold]data[/bold] differ",
        f"  expected  sha256:{'0' * 64}",
        "  found     7",
        "hint: copy it again",
    ]


def test_an_error_as_json_is_one_object_on_stdout_and_the_same_text_on_stderr(capsys: Capture) -> None:
    print_error(REFUSAL, as_json=False)
    text = capsys.readouterr().err
    print_error(REFUSAL, as_json=True)
    out, err = capsys.readouterr()
    assert err == text
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "error": {
            "fact": REFUSAL.fact,
            "values": {"expected": "sha256:" + "0" * 64, "found": "7"},
            "hint": "copy it again",
            "exit_code": 3,
        }
    }


def test_an_error_without_values_or_hint_is_one_line(capsys: Capture) -> None:
    print_error(Waiting("nothing has arrived"), as_json=False)
    assert capsys.readouterr().err == "error: nothing has arrived\n"


def test_a_long_value_is_not_broken_over_lines(capsys: Capture) -> None:
    print_error(NotTrusted("altered", values={"found": "x" * 400}), as_json=False)
    assert "x" * 400 in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageProblem, 2), (BadInput, 3), (NotTrusted, 4), (DoesNotFit, 5), (TooFewUpdates, 6), (Waiting, 7), (Bug, 70)],
)
def test_exit_codes_are_those_of_the_contract(error: type[ChainError], code: int, capsys: Capture) -> None:
    print_error(error("no"), as_json=True)
    assert error.exit_code == json.loads(capsys.readouterr().out)["error"]["exit_code"] == code


def test_a_command_that_refuses_prints_one_object_and_exits_with_its_code(tmp_path: Path) -> None:
    done = python("-m", "chainctl", "inspect", str(tmp_path / "absent"), "--json")
    content: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == content["error"]["exit_code"] == 3
    assert done.stderr.decode().startswith("error: ")
    assert b"Traceback" not in done.stderr


def test_a_name_that_is_not_utf8_is_refused_like_any_other(tmp_path: Path) -> None:
    done = python("-m", "chainctl", "inspect", os.fsdecode(os.fsencode(tmp_path) + b"/ab\xff"), "--json")
    assert done.returncode == 3, done.stderr.decode(errors="replace")
    assert json.loads(done.stdout)["error"]["exit_code"] == 3


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 1024**3),
        ("512MiB", 512 * 1024**2),
        ("1.5GB", 1_500_000_000),
        ("64KiB", 65536),
        ("3kB", 3000),
        ("7MB", 7_000_000),
        ("1500000000", 1_500_000_000),
        ("100b", 100),
        ("100 B", 100),
        ("2gib", 2 * 1024**3),
        ("2GIB", 2 * 1024**3),
        (" 2 GiB ", 2 * 1024**3),
        ("0.5MiB", 524288),
        ("1", 1),
    ],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "GiB", "two GiB", "-1", "-1GiB", "+1", "0", "0GiB", "0.0MiB", "1e9", "1,5GB", "1.GiB", ".5GiB"),
        *(
            "2TiB2",
            "2G",
            "2Gi",
            "2 GiB free",
            "1.5.5GB",
            "0x10",
            "nan",
            "inf",
            "1_000",
            "2GiB\0",
            "0.5",
            "0.5b",
            "9" * 400,
        ),
    ],
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem, match="not a size"):
        parse_size(text)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 2**20), unit=st.sampled_from(["", "B", "KiB", "MiB", "GiB", "kB", "MB", "GB"]))
def test_a_whole_number_of_any_unit_is_exact(count: int, unit: str) -> None:
    power = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3}[unit[:1].upper()]
    assert parse_size(f"{count}{unit}") == count * (1024 if "i" in unit else 1000) ** power


# Bugs.

BROKEN = (
    "import sys, stages.store.artifact\n"
    "def broken(*arguments, **options): raise KeyError('a text of the user')\n"
    "stages.store.artifact.verify_artifact = broken\n"
    "from chainctl.cli import main\n"
    "sys.argv = ['chainctl', 'inspect', 'anything', *sys.argv[1:]]\n"
    "main()\n"
)


def test_a_bug_asks_to_be_reported_and_shows_no_traceback_and_no_text() -> None:
    done = python("-c", BROKEN)
    said = done.stderr.decode()
    assert done.returncode == 70
    assert "this is a bug in chainctl: please report it" in said
    assert re.search(r"where +chainctl/commands/inspect\.py, line \d+", said)
    assert "KeyError" in said
    assert "CHAINCTL_DEBUG=1" in said
    assert "Traceback" not in said
    assert "user" not in said


def test_the_hint_of_a_bug_shows_the_traceback() -> None:
    said = python("-c", BROKEN, CHAINCTL_DEBUG="1").stderr.decode()
    assert "KeyError: 'a text of the user'" in said
    assert "Traceback" in said
    assert "please report it" in said


def test_a_bug_is_an_object_with_json() -> None:
    done = python("-c", BROKEN, "--json")
    assert json.loads(done.stdout)["error"]["exit_code"] == 70


def test_memory_that_the_system_does_not_give_is_not_a_bug() -> None:
    done = python("-c", BROKEN.replace("KeyError('a text of the user')", "MemoryError"))
    assert done.returncode == 5
    assert "too little memory" in done.stderr.decode()
