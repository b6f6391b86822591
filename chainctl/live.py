"""What is drawn anew on a terminal: nothing of it stays there, whoever draws says at the end what is to be kept."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chainctl.events import event_log
from chainctl.streams import unescaped

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.console import RenderableType
    from rich.live import Live


def open_terminal(*, spoken: bool) -> "Terminal | None":
    """The terminal at stderr; None where there is none that can be drawn on, or events are asked for.

    `spoken`: stdout must be one too, so that what is said there appears above what is drawn.
    """
    if event_log() or not sys.stderr.isatty() or (spoken and not sys.stdout.isatty()):
        return None
    from rich.console import Console as Terminal

    terminal = Terminal(file=unescaped(sys.stderr))
    return terminal if terminal.is_interactive else None


@contextmanager
def drawn(renderable: "RenderableType", terminal: "Terminal") -> "Iterator[Live]":
    """Draw it at the bottom of the terminal, four times a second, until the block ends."""
    from rich.live import Live

    with Live(renderable, console=terminal, transient=True, redirect_stdout=sys.stdout.isatty()) as live:
        yield live
