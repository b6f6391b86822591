"""How a stage reports while it works: callbacks for progress and for sentences, and ones that show nothing."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (phase, done, total)
Say = Callable[[str], object]  # a sentence for people


def silent(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def unsaid(sentence: str) -> None:
    """A `Say` that says nothing."""
