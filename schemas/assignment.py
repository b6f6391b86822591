"""What one device trains in one round."""

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Many, Record
from schemas.refs import MOST_LAYERS, Layer, SignedInt, Window

FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
MOST_EXTRA_NAMES = 64


class Assignment(Record):
    """Any set of layers, and integers that the method adds.  No layers: only the head trains.

    A function of plan, state and device; a state holds it if it is the same for all participants.
    """

    layers: Annotated[Many[Layer], Field(max_length=MOST_LAYERS)] = ()
    # Ranks, seeds and the like, by name.
    extra: dict[FieldName, Many[SignedInt]] = Field(default_factory=dict, max_length=MOST_EXTRA_NAMES)

    @classmethod
    def of(cls, window: Window) -> "Assignment":
        """The assignment of all layers of a window."""
        return cls(layers=tuple(window.layers))

    @property
    def span(self) -> Window | None:
        """The smallest window that holds all the layers; None if there are none."""
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
            raise ValueError("layers must be listed once each, in order")
        return self


def described(assignment: Assignment | None) -> str:
    """A round's assignment, for people; None means that it differs by device."""
    return "by device" if assignment is None else str(assignment)
