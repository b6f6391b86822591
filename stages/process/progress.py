"""How far work has come, for whoever wants to show it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (phase, done, total)


def silent(phase: str, done: int, total: int) -> None:
    """Shows nothing."""
