"""A mutant in functions that are loaded does what it would do if its module were imported."""

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mutants.operators import mutants
from mutants.reach import Reach, statement
from mutants.swap import CannotSwap, functions_of, swap

SOURCE = """
from functools import cache

LIMIT = 3


def below(value, limit=LIMIT):
    return value < limit


class Box:
    def __init__(self, size):
        self.size = size

    @property
    def is_large(self):
        return any(one > 2 for one in [self.size])


@cache
def doubled(value):
    return 2 * value
"""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcomes(module: ModuleType) -> list[object]:
    """What the functions say, of everything that a mutant of them could change."""
    module.doubled.cache_clear()
    asked: list[Callable[[int], object]] = [
        lambda value: module.below(value),
        lambda value: module.Box(value).is_large,
        lambda value: module.Box(value).size,
        lambda value: module.doubled(value),
    ]
    return [outcome(ask, value) for ask in asked for value in range(6)]


def outcome(ask: Callable[[int], object], value: int) -> object:
    try:
        return ask(value)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        return type(error)


def test_every_mutant_that_can_be_put_in_behaves_as_the_module_that_has_it(tmp_path: Path) -> None:
    put_in = 0
    for number, mutant in enumerate(mutants(SOURCE)):
        mutated = tmp_path / f"mutant_{number}.py"
        mutated.write_text(mutant.text)
        path = tmp_path / f"module_{number}.py"
        path.write_text(SOURCE)
        module = load(path)
        before = outcomes(module)
        try:
            swap(functions_of(path), SOURCE, mutant.text, path)
        except CannotSwap:
            assert outcomes(module) == before  # nothing has changed
            continue
        put_in += 1
        assert outcomes(module) == outcomes(load(mutated)), mutant
    assert put_in >= 8


@pytest.mark.parametrize("change", [("LIMIT = 3", "LIMIT = 4"), ("limit=LIMIT", "limit=5")])
def test_what_is_not_in_a_function_cannot_be_put_in(change: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    load(path)
    with pytest.raises(CannotSwap):
        swap(functions_of(path), SOURCE, SOURCE.replace(*change), path)


def test_a_mutant_is_asked_of_what_reaches_its_statement_the_quickest_first() -> None:
    seconds = {"a::slow": 9.0, "a::quick": 1.0, "b::other": 2.0, "b::starts": 3.0, "b::endless": 99.0}
    lines = {"a::slow": [4], "a::quick": [4, 5], "b::other": [9], "b": [7], "": [1], "b::endless": [9]}
    reach = Reach(seconds, {test: frozenset(found) for test, found in lines.items()}, frozenset({"b::starts"}))
    assert reach.tests(range(4, 5)) == ["a::quick", "a::slow"]
    assert reach.tests(range(9, 10)) == ["b::other"]  # in fifteen seconds
    assert reach.tests(range(7, 8)) == ["b::other", "b::starts"]  # of a fixture of that file
    assert reach.tests(range(1, 2))[:2] == ["a::quick", "b::other"]  # when the module is loaded
    assert reach.tests(range(100, 101)) == ["b::starts"]  # reached by no test here


def test_a_statement_is_its_own_lines_and_not_those_of_what_it_holds() -> None:
    tree = ast.parse("if (\n    a\n):\n    f(\n        1\n    )\n")
    assert [statement(tree, line) for line in (1, 2, 5)] == [range(1, 4), range(1, 4), range(4, 7)]
