"""Values of flags: what has a rule is checked when it is parsed, before anything is read, without a traceback."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from chainctl.cli import COMMANDS
from chainctl.options import similar_name
from schemas.errors import UsageProblem
from tests import fleet

# By option or argument, what breaks its rule.  Choices and bounds are the command's own.
NAMES = ["Hospital-A", "ward 3", "gerät", "", "-a", "a/b", "a" * 65, "…"]
SIZES = ["1,5GB", "2G", "0", "-1", "much", "1e400"]
NUMBERS = ["x", "nan", "inf", "-inf", "-1", "1e400"]
RULES: dict[str, list[str]] = {
    "--device": NAMES,
    "--key": NAMES,
    "keys new name": NAMES,
    "keys show name": NAMES,
    "trust add name": NAMES,
    "trust remove name": NAMES,
    "trust add key": ["ed25519:00", "x", "", "ed25519:" + "0" * 64, "ed25519:02" + "0" * 62],
    "--memory-budget": SIZES,
    "--cache-limit": SIZES,
    "--split": SIZES,
    "--limit": SIZES,
    "--alpha": [*NUMBERS, "0"],
    "--fraction": [*NUMBERS, "0", "1"],
    "--temperature": NUMBERS,
    "--every": [*NUMBERS, "0", "86401"],
    "--top-p": [*NUMBERS, "0", "1.5"],
    "--expires": ["tomorrow", "2027-13-01", ""],
    "--set": ["encoding.max_length=0", "optimizer.epochs=x", "seed=-1", "nonsense", "chain.window=3"],
    "--method": ["nonsense"],
    "--seed": ["x", "-1", str(2**53), "1.5"],
    "--devices": ["x", "0", "-1", "100001"],
    "--layers": ["x", "0", "1000000"],
}


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from leaves(child, (*path, name))


ALL = [found for entry in COMMANDS for found in leaves(entry.load(), (entry.name,))]


def name_of(path: tuple[str, ...], parameter: Any) -> str:
    return max(parameter.opts, key=len) if parameter.opts[0].startswith("-") else " ".join((*path, parameter.name))


def bad_values(path: tuple[str, ...], parameter: Any) -> list[str]:
    """What breaks the rule of a parameter: of the table, of its choices or of its bounds."""
    listed, told = RULES.get(name_of(path, parameter), []), parameter.type_descriptor
    if isinstance(told.annotation, type) and issubclass(told.annotation, Enum):
        return [*listed, "nonsense"]
    if not is_number(parameter) or told.parameter_info.parser is not None:
        return listed
    return [*listed, "x", "1.5.1", *([str(told.parameter_info.min - 1)] if has_bounds(parameter) else [])]


def is_number(parameter: Any) -> bool:
    return parameter.type_descriptor.annotation in (int, float)


def has_bounds(parameter: Any) -> bool:
    return parameter.type_descriptor.parameter_info.min is not None


def given(path: tuple[str, ...], command: Any, chosen: Any, value: str) -> list[str]:
    """A command line in which one parameter has a value, and all that are needed name nothing that exists."""
    line = list(path)
    behind: list[str] = []
    for parameter in command.params:
        name = name_of(path, parameter)
        mine = value if parameter is chosen else None
        usual = {"--device": "a", "keys new name": "a", "trust add name": "a", "--devices": "2", "--to": "jsonl"}
        other = usual.get(name, "/no/where")
        if parameter.param_type_name == "argument":
            behind.append(mine if mine is not None else other)
        elif mine is not None:
            line.append(f"{name}={mine}")
        elif parameter.required:
            line.append(f"{name}={other}")
    if path == ("data", "split") and name_of(path, chosen) != "--alpha":
        line.append("--iid")
    return [*line, "--", *behind]


BAD = [
    pytest.param(given(path, command, parameter, value), id=f"{' '.join(path)} {parameter.name}={value[:12]}")
    for path, command in ALL
    for parameter in command.params
    for value in bad_values(path, parameter)
]


@pytest.mark.parametrize("line", BAD)
def test_a_value_that_breaks_a_rule_is_a_usage_error(line: list[str]) -> None:
    done = fleet.chainctl(*line, check=False)
    assert done.returncode == UsageProblem.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert "/no/where" not in done.stderr.replace(" ".join(line), "")  # nothing was looked for


def test_every_number_has_a_rule() -> None:
    numbers = [
        (name_of(path, parameter), parameter)
        for path, command in ALL
        for parameter in command.params
        if is_number(parameter)
    ]
    assert len(numbers) > 20
    assert [name for name, one in numbers if not has_bounds(one) and name not in RULES] == []


def test_every_rule_is_of_a_parameter() -> None:
    assert set(RULES) <= {name_of(path, parameter) for path, command in ALL for parameter in command.params}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hospital-A", "hospital-a"),
        ("ward 3", "ward-3"),
        ("gerät", "gerat"),
        ("PC_01.", "pc_01"),
        ("…", ""),
        ("a" * 99, "a" * 64),
    ],
)
def test_the_suggestion_is_a_name(text: str, name: str, tmp_path: Path) -> None:
    assert similar_name(text) == name
    refused = fleet.chainctl("keys", "new", text, check=False, home=tmp_path)
    assert refused.returncode == UsageProblem.exit_code
    suggestion = refused.stderr.partition("hint: ")[2].split()[0]
    assert suggestion == (name or "device-00")
    fleet.chainctl("keys", "new", suggestion, home=tmp_path)


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(b"\xef\xbb\xbf[encoding]\r\nmax_length = 24\r\n")
    assert "x 24 tokens" in fleet.chainctl("model", "info", tiny_bert, "--recipe", recipe).stdout
