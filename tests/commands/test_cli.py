"""The command tree: a table of names and summaries, and commands that are imported when they are used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chainctl.cli import COMMANDS, Entry, app
from chainctl.presets import PRESETS
from schemas.errors import UsageProblem
from schemas.methods import ChainSettings
from schemas.methods.chain import ablated
from schemas.recipe import parse_recipe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "chainctl" / "commands"


def name_of(entry: Entry) -> str:
    return entry.name


def leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """A command, or all of a group, with their paths."""
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [leaf for name, child in command.commands.items() for leaf in leaves(child, (*path, name))]


EVERY_COMMAND = [
    pytest.param(path, command, id=" ".join(path))
    for entry in COMMANDS
    for path, command in leaves(entry.load(), (entry.name,))
]


@pytest.mark.parametrize("entry", COMMANDS, ids=name_of)
def test_the_table_says_what_the_command_says_first(entry: Entry) -> None:
    assert entry.load().help.splitlines()[0] == entry.summary


def test_every_module_of_commands_is_in_the_table() -> None:
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert modules == {entry.target.partition(":")[0] for entry in COMMANDS}


def test_help_lists_every_command_with_its_whole_summary_in_sections() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "60"})
    assert shown.exit_code == 0
    words = " ".join(shown.output.split())
    for entry in COMMANDS:
        assert f"{entry.name} {entry.summary}" in words
        assert f"{entry.section}:" in shown.output


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_every_option_of_every_command_is_explained_on_its_help_page(path: tuple[str, ...], command: Any) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert "".join(parameter.help.split()) in "".join(shown.output.split())  # lines may break at a hyphen


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_every_command_can_be_quiet_and_answers_in_json(path: tuple[str, ...], command: Any) -> None:
    """But the one whose answer is JSON already."""
    options = {option for parameter in command.params for option in parameter.opts}
    assert path == ("schema",) or {"--json", "--quiet", "-q"} <= options


def test_groups_and_single_commands_take_the_short_flag_too() -> None:
    for path in ([], ["keys"], ["keys", "new"], ["plan"]):
        assert CliRunner().invoke(app, [*path, "-h"]).output.startswith("Usage: ")


def test_an_unknown_command_names_the_nearest_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chainctl", "agregate"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "aggregate" in done.stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_recipe_that_parses_back(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    shown = CliRunner().invoke(app, ["recipe", "new", str(path), "--preset", preset])
    assert shown.exit_code == 0
    assert parse_recipe(path.read_text(), source="recipe") == PRESETS[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_is_written_with_the_settings_that_are_set(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    command = ["recipe", "new", str(path), "--preset", preset, "--set", "encoding.max_length=128"]
    assert CliRunner().invoke(app, command).exit_code == 0
    encoding = PRESETS[preset].encoding.model_copy(update={"max_length": 128})
    expected = PRESETS[preset].model_copy(update={"encoding": encoding})
    assert parse_recipe(path.read_text(), source="recipe") == expected


def test_ablations_are_of_the_papers_chain() -> None:
    papers = ablated(ChainSettings(), dlct=True, gpo=True, foat=False)
    assert papers == ChainSettings(foresight="adapters", start=0)
    one = ablated(ChainSettings(stride=2), dlct=False, gpo=False, foat=True)
    assert one == ChainSettings(
        foresight="adapters", window_size=1, stride=1, advance="on-convergence", global_weight=0.0, local_weight=1.0
    )
    assert ablated(ChainSettings(), dlct=True, gpo=True, foat=True) == ChainSettings()
    with pytest.raises(UsageProblem, match="paper's chain"):
        ablated(ChainSettings(foresight="layers"), dlct=False, gpo=True, foat=True)
