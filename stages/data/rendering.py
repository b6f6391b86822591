"""Many texts rendered at once: by a model's own template in one child, which the system limits.

A chat template is a program.  Jinja's sandbox keeps it from files and from Python, and not from looping for years or
from writing a text that fills the memory.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from schemas.errors import BadInput, ChainError
from stages.data.load import Example
from stages.data.template import ChatTemplate, Rendered, Template
from stages.process.confined import Limits, OverLimitError, map_confined

LIMITS = Limits(seconds=2)  # a real template takes milliseconds, and no memory
MOST_ADDED = 2**16  # characters, beside eight times those of the dialogue: a tokenizer reads what a template writes
MOST_TIMES = 8
HINT = 'set prompt.template = "alpaca", or get a model with another chat template'

T = TypeVar("T")


def render_all(template: Template, examples: Sequence[Example]) -> list[Rendered]:
    """The whole text of each example.  Raises `BadInput`."""
    return _each(template, template.render, examples)


def prompt_all(template: Template, examples: Sequence[Example]) -> list[str]:
    """The text before the last response of each example.  Raises `BadInput`."""
    return _each(template, template.prompt, examples)


def _each(template: Template, render: Callable[[Example], T], examples: Sequence[Example]) -> list[T]:
    if not isinstance(template, ChatTemplate):
        return [render(example) for example in examples]
    try:
        return map_confined(lambda example: _bounded(render(example), example), examples, LIMITS)
    except OverLimitError as error:
        raise BadInput(
            "the model's chat template takes too much to render one dialogue",
            values={"limits": LIMITS, "reached": error.resource, "dialogue": f"number {error.index + 1}"},
            hint=HINT,
        ) from None
    except ChainError:
        raise
    except Exception as error:
        raise BadInput(
            "the model's chat template fails on a dialogue",
            values={"reason": type(error).__name__},
            hint=HINT,
        ) from error


def _bounded(rendered: T, example: Example) -> T:
    """The same, if it is about as long as what it renders.  Raises `BadInput`."""
    length = len(rendered.text if isinstance(rendered, Rendered) else str(rendered))
    content = sum(len(text) for _, text in example.turns)
    if length > MOST_ADDED + MOST_TIMES * content:
        raise BadInput(
            "the model's chat template writes far more than the dialogue",
            values={"dialogue": f"{content} characters", "rendered": f"{length} characters"},
            hint=HINT,
        )
    return rendered
