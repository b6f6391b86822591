"""Update v1: the tensors that one device trained in one round."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.assignment import Assignment, FieldName
from schemas.base import Manifest, Many, Record
from schemas.refs import DeviceName, Digest, FileReference, TensorReference

MOST_NUMBERS = 1024
LARGEST_LOSS = 1e30  # far above the loss of any model: a mean over any number of devices stays finite
Loss = Annotated[float, Field(ge=-LARGEST_LOSS, le=LARGEST_LOSS)]


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
    round: Annotated[int, Field(ge=0)]  # of that state
    assignment: Assignment  # what was trained: the assignment, or a part of it
    device: DeviceName
    inputs: Digest  # salted digest of the texts: recognises equal inputs without revealing them
    example_count: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    loss: TrainingLoss
    # Numbers that the method asks for, by name.
    numbers: dict[FieldName, Loss] = Field(default_factory=dict, max_length=MOST_NUMBERS)
    tensors: Many[TensorReference]
    files: Many[FileReference]
