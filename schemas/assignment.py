"""What one device is to train in one round."""

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Many, Record
from schemas.refs import Window

FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
MOST_LAYERS = 4096
MOST_EXTRA_NAMES = 64


class Assignment(Record):
    """Layers, any set of them, and what the method adds.  No layers: the head alone.

    A function of plan, state and device; a state carries it where it is the same for all of its participants.
    """

    layers: Annotated[Many[Annotated[int, Field(ge=0)]], Field(max_length=MOST_LAYERS)] = ()
    # Ranks, seeds, …
    extra: dict[FieldName, Many[int]] = Field(default_factory=dict, max_length=MOST_EXTRA_NAMES)

    @classmethod
    def of(cls, window: Window) -> "Assignment":
        """That of a window of layers."""
        return cls(layers=tuple(window.layers))

    @property
    def span(self) -> Window | None:
        """The smallest window that holds all the layers; None where there are none."""
        return Window(start=self.layers[0], stop=self.layers[-1] + 1) if self.layers else None

    def __str__(self) -> str:
        if self.span is None:
            return "head"
        if len(self.span.layers) == len(self.layers):
            return str(self.span)
        return ",".join(map(str, self.layers))

    @model_validator(mode="after")
    def _layers_rise(self) -> "Assignment":
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers are listed once each, in order")
        return self


def described(assignment: Assignment | None) -> str:
    """What a round trains, for people."""
    return "by device" if assignment is None else str(assignment)
