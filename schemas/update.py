"""Update v1: the tensors that one device trained in one round."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.assignment import Assignment, FieldName
from schemas.base import Manifest, Many, Record
from schemas.refs import DeviceName, Digest, FileReference, Loss, NonNegativeInt, PositiveInt, TensorReference

MOST_NUMBERS = 1024
LARGEST_REPORT = 1e30  # of a number that a method asks for: a float32, and so are sums over all devices
Reported = Annotated[float, Field(ge=-LARGEST_REPORT, le=LARGEST_REPORT)]


class TrainingLoss(Record):
    """Losses of Eq. 2, in nats per target."""

    first: Loss  # first step
    last: Loss  # last step
    mean: Loss  # over all steps, weighted by their target counts
    mean_local: Loss | None  # None if there is no local loss: foresight through layers, w = 0
    mean_global: Loss | None  # None if there is no global loss: the last window, or λ = 0


class UpdateManifest(Manifest):
    """The tensors that one device trained, and the numbers that it reports beside them."""

    KIND: ClassVar[str] = "update"

    kind: Literal["update"] = "update"
    version: Literal[1] = 1
    plan: Digest
    state: Digest  # the state that training started from
    round: NonNegativeInt  # of that state
    assignment: Assignment  # what was trained: the assignment, or a part of it
    device: DeviceName
    inputs: Digest  # salted digest of the texts: recognises equal inputs without revealing them
    example_count: PositiveInt
    steps: PositiveInt
    loss: TrainingLoss
    # Numbers that the method asks for, by name.
    numbers: dict[FieldName, Reported] = Field(default_factory=dict, max_length=MOST_NUMBERS)
    tensors: Many[TensorReference]
    files: Many[FileReference]
