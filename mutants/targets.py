"""Which tests have to find the errors in which module, and which mutants no test can find.  Read from targets.toml."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutants.operators import Mutant, mutants

TABLE = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True)
class Target:
    """A module and its tests, as paths from the root of the tree; the quickest tests first."""

    module: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Equivalent:
    """A mutant that does what the module does; `line` is the text of the line that has the error."""

    module: str
    line: str
    code: str
    becomes: str
    reason: str

    def matches(self, module: str, mutant: Mutant) -> bool:
        """Whether it is this one, wherever in the module."""
        there = (module, mutant.context, mutant.code, mutant.becomes)
        return (self.module, self.line, self.code, self.becomes) == there


def read_targets(root: Path) -> list[Target]:
    """All targets, by module: it has the tests of every entry that names it, or of the last entries, `otherwise`."""
    table = tomllib.loads(TABLE.read_text())
    found: dict[str, list[str]] = {}
    for entry in table["target"]:
        for module in _modules(root, entry):
            found.setdefault(module, []).extend(entry["tests"])
    for entry in table["otherwise"]:
        for module in _modules(root, entry):
            found.setdefault(module, entry["tests"])
    return [Target(module, tuple(dict.fromkeys(tests))) for module, tests in sorted(found.items())]


def _modules(root: Path, entry: dict[str, list[str]]) -> list[str]:
    paths = {path for pattern in entry["modules"] for path in root.glob(pattern)}
    return [str(path.relative_to(root)) for path in sorted(paths) if path.name != "__init__.py"]


def read_equivalents() -> list[Equivalent]:
    """All mutants that are listed as equivalent."""
    return [Equivalent(**entry) for entry in tomllib.loads(TABLE.read_text()).get("equivalent", [])]


def unmatched(root: Path, equivalents: Sequence[Equivalent], modules: Iterable[str]) -> list[Equivalent]:
    """Those of the modules' that are no mutant any more."""
    chosen = set(modules)
    there = {
        module: list(mutants((root / module).read_text())) for module in {one.module for one in equivalents} & chosen
    }
    return [
        one
        for one in equivalents
        if one.module in chosen and not any(one.matches(one.module, mutant) for mutant in there[one.module])
    ]
