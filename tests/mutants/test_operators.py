"""The errors that are put into modules, and that the table of targets fits the tree."""

import ast

import pytest

from mutants.operators import mutants
from mutants.targets import read_equivalents, read_targets, unmatched
from tests.fleet import ROOT


@pytest.mark.parametrize(
    ("code", "becomes"),
    [
        ("a < b", ["a <= b", "a >= b"]),
        ("a < b <= c", ["a <= b <= c", "a >= b <= c", "a < b < c", "a < b > c"]),
        ("a not in b", ["a in b"]),
        ("a - 1", ["a + 1", "a - 2", "a - 0"]),
        ("not a", ["a"]),
        ("a and b", ["a or b", "b", "a"]),
        ("a if b else c", ["a", "c"]),
        ("f(a, key=b, strict=True)", ["f(a, strict=True)"]),
        ("a[1:b]", ["a[:b]", "a[1:]", "a[2:b]", "a[0:b]"]),
        ("sorted(a)", ["list(a)"]),
        ("'word'", ["''"]),
        ("f'{a} word'", []),
        ("[a for a in b if c]", ["[a for a in b]"]),
    ],
)
def test_what_becomes_of_an_expression(code: str, becomes: list[str]) -> None:
    found = [one.text.removeprefix("x = ") for one in mutants(f"x = {code}")]
    assert sorted(found) == sorted(becomes)


@pytest.mark.parametrize(
    ("code", "becomes"),
    [
        ("if a:\n    f()", ["if not a:\n    f()", "if a:\n    pass"]),
        ("raise BadInput('words', hint='more words')", ["pass"]),
        ("a += b", ["a -= b", "a = b"]),
        ("def f(a: int = 2) -> int:\n    return a", ["3", "1", "return None"]),
        ("def f():\n    'words'\n    assert a", []),
        ("import a\nfrom b import c", []),
        ("@cache\nclass A:\n    b: int = 1\n    c: Annotated[int, 3]", ["2", "0"]),
        ("A = Literal['a', 'b']", []),
    ],
)
def test_what_becomes_of_a_statement(code: str, becomes: list[str]) -> None:
    assert len(list(mutants(code))) == len(becomes)


def test_a_mutant_is_the_module_with_one_error_and_says_where() -> None:
    source = "def f(a):\n    if a > 0:\n        return a\n    return 0\n"
    found = list(mutants(source))
    assert len({one.text for one in found} | {ast.unparse(ast.parse(source))}) == len(found) + 1
    (at_least,) = [one for one in found if one.becomes == "a >= 0"]
    assert (at_least.line, at_least.code) == (2, "a > 0")
    assert at_least.text == "def f(a):\n    if a >= 0:\n        return a\n    return 0"


def test_every_module_that_trust_hangs_on_has_tests_that_exist() -> None:
    targets = read_targets(ROOT)
    assert {test for target in targets for test in target.tests if not (ROOT / test).is_file()} == set()
    wanted = {*ROOT.glob("stages/store/*.py"), *ROOT.glob("stages/federated/*.py")}
    covered = {ROOT / target.module for target in targets}
    assert {path.name for path in wanted - covered} == {"__init__.py"}


def test_what_is_listed_as_equivalent_is_a_mutant() -> None:
    listed = read_equivalents()
    assert unmatched(ROOT, listed, {one.module for one in listed}) == []
    assert all(one.reason for one in listed)
