"""The type of progress callbacks, and one that shows nothing."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (phase, done, total)


def silent(phase: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""
