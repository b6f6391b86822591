"""Names and labels from outside, as a terminal gets them: they steer nothing, and make no line of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.console import Console, print_error
from schemas.base import canonical_json
from schemas.errors import BadInput
from schemas.settings import Settings, TaskSettings
from schemas.visible import visible, visible_text
from stages.report.recipe import write_recipe
from tests import fleet
from tests.fleet import ROOT, chainctl_process

NAMES = {
    "OSC": "\x1b]0;owned\x07\x1b[2J\x1b[31mzz",
    "a message of ours": "zz\nwhole  state  sha256:0123456789ab",
    "carriage return": "zz\rround 9: 40 updates",
    "bidi": "zz\u202egnp.exe\u2066",
    "C1": "zz\x9b31m\x85next",
    "separators": "zz\u2028next\u2029",
    "zero width": "z\u200bz\ufeff\u2060",
    "not UTF-8": "zz\udc9b31m\udcff",
    "markup": "[red]zz[bold]:cat:",
}
HARMLESS = re.compile("[\x20-\x7e\u00b1\u2026\u2192\n]*")  # what our own messages have


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_shown_on_its_line_and_steers_nothing(name: str, tmp_path: Path) -> None:
    """`verify` of a folder that is not there, one that is no artifact, and one that is; updates that are refused."""
    broken, whole = tmp_path / name, tmp_path / f"whole {name}"
    broken.mkdir()
    fleet.write_update(whole)
    done = chainctl_process("verify", broken, whole, tmp_path / f"{name}-absent", check=False, errors="surrogateescape")
    assert done.returncode == 3
    assert HARMLESS.fullmatch(done.stdout)
    assert HARMLESS.fullmatch(done.stderr)
    shown = visible(name)
    assert [line.startswith("whole  update") and shown in line for line in done.stdout.splitlines()] == [True]
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 2
    assert all(line.startswith(("error: ", "  ", "hint: ")) for line in done.stderr.splitlines())
    assert done.stderr.count(shown) >= 2


def test_a_refused_update_is_told_in_one_line(tmp_path: Path) -> None:
    _, state = fleet.make_world(tmp_path)
    for name in NAMES.values():
        if name.isascii():
            (tmp_path / "in" / name).mkdir(parents=True)
            (tmp_path / "in" / name / "manifest.json").write_text('{"kind": "update"}')
    fleet.make_update(tmp_path / "in" / "a", state, "a", seed=1)
    arguments = ("--plan", tmp_path / "plan", "--state", tmp_path / "state", "--out", tmp_path / "next")
    done = chainctl_process("aggregate", tmp_path / "in", *arguments, "--quorum", 1, check=False)
    assert HARMLESS.fullmatch(done.stdout + done.stderr)
    assert done.returncode == 0
    assert all(line.startswith("refused (unreadable): ") for line in done.stderr.splitlines())


def test_what_a_stranger_measured_is_shown_by_inspect_and_steers_nothing(tmp_path: Path) -> None:
    update = fleet.write_update(tmp_path / "update")
    measured = json.loads((update.path / "measured.json").read_bytes())
    measured["machine"] = "\x1b]52;c;ZWNobyBwd25lZA==\x07\x1b[2J fake\nsigned by the coordinator \u202e"
    (update.path / "measured.json").write_bytes(canonical_json(measured))
    done = chainctl_process("inspect", update.path)
    assert HARMLESS.fullmatch(done.stdout)
    assert not any(line.lstrip().startswith("signed by") for line in done.stdout.splitlines())
    assert r"\x1b]52;c;" in done.stdout
    found = chainctl_process("inspect", update.path, "--json")
    assert found.stdout.isascii()
    assert json.loads(found.stdout)["measured"]["machine"] == measured["machine"]


def test_the_parser_of_the_command_line_and_libraries_steer_nothing_either() -> None:
    done = chainctl_process("verify", "--\x1b]0;owned\x07\u202e", check=False)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr
    script = (
        "from chainctl.streams import prepare_streams; prepare_streams()\n"
        "import logging, warnings\n"
        "logging.getLogger('x').warning('\\x1b[2J'); warnings.warn('\\x9b31m\\u202e')\n"
    )
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stderr
    assert r"\x1b[2J" in said
    assert r"\x9b31m\u202e" in said
    assert said.isprintable() or HARMLESS.fullmatch(said)


def on_terminal(script: str) -> str:
    """What a script that has a `console` writes to a terminal."""
    main, side = pty.openpty()
    code = f"from chainctl.console import *; console = Console(); {script}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=side, stderr=side) as process:
        os.close(side)
        said = bytearray()
        try:
            while data := os.read(main, 2**16):
                said += data
        except OSError:  # the other side is closed
            pass
    os.close(main)
    assert process.returncode == 0
    return said.decode().replace("\r\n", "\n")


def test_colours_are_ours_on_a_terminal_and_what_is_in_a_cell_or_an_error_is_not() -> None:
    said = on_terminal(
        "console.table(['\\x1b[2Ja'], [['[red]\\x1b[31mb\\n:cat:']]); console.say('\\x1b[5mc\\nd')\n"
        "print_error(ChainError('[red]\\x1b[31mb :cat:', values={'\\x1b[2J': '\\x9b'}), as_json=False)"
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)  # colours and bold, and nothing else
    assert [line.rstrip() for line in plain.splitlines()] == [
        r"\x1b[2Ja",
        r"[red]\x1b[31mb\n:cat:",
        r"\x1b[5mc\nd",
        r"error: [red]\x1b[31mb :cat:",
        r"  \x1b[2J  \x9b",
    ]


WRITTEN = "one\n\ttwo \u200cthree\x1b[2J\u202e\r"


def test_what_a_model_writes_is_whole_in_a_file_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say_text(WRITTEN, before="  ")
    assert capsys.readouterr().out == f"  {WRITTEN}\n"
    said = on_terminal(f"console.say_text({WRITTEN!r}, before='  ')")
    assert said.replace("        ", "\t") == "  one\n\ttwo \u200cthree\\x1b[2J\\u202e\\r\n"


@given(st.text())
def test_what_is_visible_is_printable_and_what_was_printable_is_as_it_was(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)
    if text.isprintable():
        assert visible(text) == visible_text(text) == text
    assert visible_text(text).count("\n") == text.count("\n")


def test_an_error_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(BadInput("a\nerror: b", values={"x\nhint: y": "1\n2"}, hint="z\u2028"), as_json=True)
    out, err = capsys.readouterr()
    assert err.splitlines() == [r"error: a\nerror: b", r"  x\nhint: y  1\n2", r"hint: z\u2028"]
    assert json.loads(out)["error"]["fact"] == "a\nerror: b"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=3, unique=True))
def test_a_recipe_shows_labels_that_steer_nothing_and_reads_back(labels: list[str]) -> None:
    settings = Settings().model_copy(update={"task": TaskSettings().model_copy(update={"labels": tuple(labels)})})
    text = write_recipe(settings)
    assert all(line.isprintable() for line in text.splitlines())
    assert tomllib.loads(text)["task"]["labels"] == labels
