"""Errors that a person can act on.

Every refusal in chainctl is a `ChainError`: one sentence of fact, the two values that disagree, and the way
out.  The class decides the exit code, which is part of the public contract (see `chainctl --help`).
A caller's bug is a `ValueError`; a broken invariant is an `assert`; neither is a `ChainError`.
"""

from collections.abc import Sequence
from typing import ClassVar

from schemas.visible import visible


def some(names: Sequence[str], *, most: int = 8) -> str:
    """The first few names of many, and how many more there are: an error is not a list of ten thousand devices."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


class ChainError(Exception):
    """A refusal with its evidence.

    `fact` is one sentence; `values` are labelled values, usually what was expected and what was found;
    `hint` says what to do next.  None of them ever holds a user's text.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, fact: str, *, values: dict[str, object] | None = None, hint: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.values = dict(values or {})
        self.hint = hint

    def __str__(self) -> str:
        lines = [visible(self.fact)]
        values = {visible(label): visible(str(value)) for label, value in self.values.items()}
        width = max(map(len, values), default=0)
        lines += [f"  {label:<{width}}  {value}" for label, value in values.items()]
        if self.hint:
            lines.append(f"hint: {visible(self.hint)}")
        return "\n".join(lines)


class UsageProblem(ChainError):
    """The command line asks for something that is not possible."""

    exit_code = 2


class BadInput(ChainError):
    """Data, a recipe, a model or an artifact cannot be used as it is."""

    exit_code = 3


class NotTrusted(ChainError):
    """Bytes do not match their manifest: altered, incomplete, or not the ones named."""

    exit_code = 4


class DoesNotFit(ChainError):
    """The memory budget is smaller than the work needs."""

    exit_code = 5


class TooFewUpdates(ChainError):
    """A round cannot close with the updates that have arrived."""

    exit_code = 6


class Waiting(ChainError):
    """Nothing is wrong; something has not arrived yet."""

    exit_code = 7


class Bug(ChainError):
    """Something that chainctl did not foresee.  Only the command line makes one, of whatever reaches it."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h
