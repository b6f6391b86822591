"""A stdout that is not UTF-8, closed, full, or that nobody reads: the work is done, and there is no traceback."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import ROOT, save_texts, texts

LABELS = ["naïve", "日本", "→"]
OTHER = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS: dict[str, tuple[str, dict[str, str]]] = {
    "ascii": ("ascii", {"PYTHONIOENCODING": "ascii"}),
    "ascii:strict": ("ascii", {"PYTHONIOENCODING": "ascii:strict"}),
    "latin-1": ("latin-1", {"PYTHONIOENCODING": "latin-1"}),
    "cp1252": ("cp1252", {"PYTHONIOENCODING": "cp1252"}),
    "LANG=C": ("ascii", {"LC_ALL": "C", **OTHER}),
    "utf-8": ("utf-8", {"PYTHONIOENCODING": "utf-8"}),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [row | {"label": LABELS[number % 3]} for number, row in enumerate(texts(12))]
    return save_texts(tmp_path / "data.jsonl", rows)


def splitting(data: Path, *more: str) -> list[str]:
    """A command that says the name of its output, which has characters of another alphabet, after it was made."""
    return ["data", "split", str(data), "--devices", "2", "--iid", "--out", str(data.with_name("出力 → ü")), *more]


def outputs(data: Path) -> list[str]:
    return sorted(path.name for path in data.with_name("出力 → ü").iterdir())


def chainctl(command: list[str], environment: dict[str, str] | None = None, **options: Any) -> Any:
    kept = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "PYTHONIOENCODING")}
    return subprocess.run(
        [sys.executable, "-m", "chainctl", *command], cwd=ROOT, env=kept | (environment or {}), check=False, **options
    )


def shell(line: str, command: list[str]) -> Any:
    """Run a command as `$@` of a line of shell."""
    call = [sys.executable, "-m", "chainctl", *command]
    return subprocess.run(["sh", "-c", line, "sh", *call], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_an_encoding_does_not_have_is_replaced(name: str, data: Path) -> None:
    encoding, environment = ENCODINGS[name]
    done = chainctl(splitting(data), environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert outputs(data) == ["device-00.jsonl", "device-01.jsonl"]
    said = done.stdout.decode(encoding)
    assert said.startswith("12 texts on 2 devices, 6 to 6 each -> ")
    shown = {"utf-8": "出力 → ü", "LANG=C": r"\udce5\udc87\udcba"}  # there every name is bytes
    assert shown.get(name, r"\u51fa\u529b \u2192 ") in said


@pytest.mark.parametrize("name", ENCODINGS)
def test_json_is_valid_in_every_encoding(name: str, data: Path) -> None:
    encoding, environment = ENCODINGS[name]
    done = chainctl(splitting(data, "--json"), environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout.decode(encoding))["path"]) == os.fsencode(data.with_name("出力 → ü"))
    another = splitting(data, "--seed", "1", "--json")  # the same one finds its output
    refused = chainctl(another, environment, capture_output=True)
    assert refused.returncode == 2
    fact = json.loads(refused.stdout.decode(encoding))["error"]["fact"]
    assert os.fsencode(fact).endswith("出力 → ü exists already".encode())
    assert b"Traceback" not in refused.stderr


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_recipe_on_stdout_is_for_a_file_and_always_utf8(name: str, data: Path) -> None:
    done = chainctl(["recipe", "new", "-", "--data", str(data)], ENCODINGS[name][1], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout.decode())["task"]["labels"] == sorted(LABELS)


@pytest.mark.parametrize("name", ENCODINGS)
def test_help_is_shown_in_every_encoding(name: str) -> None:
    done = chainctl(["verify", "--help"], ENCODINGS[name][1], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"DIR" in done.stdout


def test_names_that_are_not_utf8_come_back_as_they_are(tmp_path: Path, data: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/ab\xff")
    command = ["data", "split", str(data), "--devices", "2", "--iid", "--out", out]
    done = chainctl(command, {"PYTHONIOENCODING": "utf-8"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"ab\udcff" in done.stdout
    assert Path(out).is_dir()


# Nobody reads.


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_has_gone_costs_nothing(more: list[str], data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = chainctl(splitting(data, *more), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
    assert outputs(data) == ["device-00.jsonl", "device-01.jsonl"]


@pytest.mark.parametrize("command", [["schema", "plan"], ["--help"], ["recipe", "new", "-"]])
def test_a_document_whose_reader_has_gone_ends_quietly(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = chainctl(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.parametrize("closing", ['"$@" >&-', '"$@" >&- 2>&-', '"$@" <&- >&- 2>&-', '"$@" 2>&-'])
def test_closed_streams_cost_nothing_and_nothing_is_written_into_the_output(closing: str, data: Path) -> None:
    assert shell('"$@"', splitting(data)).returncode == 0
    before = {path.name: path.read_bytes() for path in data.with_name("出力 → ü").iterdir()}
    done = shell(closing, splitting(data, "--force"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in data.with_name("出力 → ü").iterdir()} == before
    assert shell(closing, ["trust", "list"]).returncode == 0  # a table
    assert shell(closing, splitting(data, "--seed", "1")).returncode == 2  # an error: another one is there


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_stdout_is_said_and_only_a_result_for_programs_is_an_error(data: Path) -> None:
    done = shell('"$@" >/dev/full', splitting(data))
    assert (done.returncode, outputs(data)) == (0, ["device-00.jsonl", "device-01.jsonl"])
    assert done.stderr.startswith("warning: standard output cannot be written: No space left")
    assert done.stderr.count("\n") == 1
    done = shell('"$@" --json >/dev/full', splitting(data, "--force"))
    assert done.returncode == 3
    assert "standard output cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert outputs(data) == ["device-00.jsonl", "device-01.jsonl"]
    assert json.loads(shell('"$@" --json', splitting(data, "--force")).stdout)  # the hint: another stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_stream_changes_no_exit_code(data: Path) -> None:
    table = "from chainctl.console import Console; Console().table(['a'], [['b']])"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", table]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("warning: standard output cannot be written: No space left")
    assert shell('"$@" 2>/dev/full', ["data", "columns", str(data.parent / "absent")]).returncode == 3
