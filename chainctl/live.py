"""What is drawn anew on a terminal: nothing of it stays there, whoever draws says at the end what is to be kept."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainctl.events import event_log
from chainctl.streams import unescaped

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.console import ConsoleOptions, RenderableType, RenderResult

ECHO = 3  # columns: a terminal shows ^C behind what is drawn, and a line that wraps could not be taken away again


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
def drawn(renderable: "RenderableType", terminal: "Terminal") -> Iterator[Callable[["RenderableType"], None]]:
    """Draw it at the bottom of the terminal until the block ends; what it gives has another one drawn instead.

    Only rich's own thread draws, four times a second: ctrl-C stops this one, and leaves no half of it on the terminal.
    """
    from rich.live import Live

    with Live(_Narrow(renderable), console=terminal, transient=True, redirect_stdout=sys.stdout.isatty()) as live:
        yield lambda another: live.update(_Narrow(another))


@dataclass(frozen=True)
class _Narrow:
    """What does not reach the right edge."""

    renderable: "RenderableType"

    def __rich_console__(self, terminal: "Terminal", options: "ConsoleOptions") -> "RenderResult":
        yield from terminal.render(self.renderable, options.update_width(max(1, options.max_width - ECHO)))
