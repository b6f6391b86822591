"""Many texts rendered at once: by a model's own template in one child, which the system limits.

A chat template is a program.  Jinja's sandbox keeps it from files and from Python, and not from looping for years or
from writing a text that fills the memory.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from schemas.errors import BadInput
from stages.data.load import Example
from stages.data.template import ChatTemplate, Rendered, Template, placed
from stages.process.confined import Limits, OverLimitError, map_confined

LIMITS = Limits(seconds=2)  # a real template takes milliseconds, and no memory
MOST_ADDED = 2**16  # characters, beside eight times those of the dialogue: a tokenizer reads what a template writes
MOST_TIMES = 8
HINT = 'set prompt.template = "alpaca", or get a model with another chat template'

T = TypeVar("T", str, Rendered)


def render_each(template: Template, render: Callable[[Example], T], examples: Sequence[Example]) -> list[T]:
    """What `render`, one of the template's functions, makes of each example.

    Raises `BadInput`, which names the place of the first that has none.
    """

    def rendered(example: Example) -> T:
        with placed(example):
            return _bounded(render(example), example)

    if not isinstance(template, ChatTemplate):
        return [rendered(example) for example in examples]
    try:
        return map_confined(rendered, examples, LIMITS)
    except OverLimitError as error:
        with placed(examples[error.index]):
            raise BadInput(
                "the model's chat template takes too much to render this dialogue",
                values={"limits": LIMITS, "reached": error.resource},
                hint=HINT,
            ) from None


def _bounded(rendered: T, example: Example) -> T:
    """The same, if it is about as long as what it renders.  Raises `BadInput`."""
    length = len(rendered.text if isinstance(rendered, Rendered) else rendered)
    content = len(example.text) + sum(len(text) for _, text in example.turns)
    if length > MOST_ADDED + MOST_TIMES * content:
        raise BadInput(
            "the model's chat template writes far more than the dialogue",
            values={"dialogue": f"{content} characters", "rendered": f"{length} characters"},
            hint=HINT,
        )
    return rendered
