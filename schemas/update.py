"""Update v1: what one device trained in one round, and nothing else."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.assignment import Assignment, FieldName
from schemas.base import Manifest, Many, Record
from schemas.refs import DeviceName, Digest, FileReference, TensorReference

MOST_NUMBERS = 1024


class TrainingLoss(Record):
    """Losses of Eq. 2, in nats an example."""

    first: float  # first step
    last: float  # last step
    mean: float  # over all steps, weighted by their example counts
    mean_local: float
    mean_global: float | None  # None where the global loss does not run: the last window, or λ = 0


class UpdateManifest(Manifest):
    """The tensors that one device trained, and what it reports beside them."""

    KIND: ClassVar[str] = "update"

    kind: Literal["update"] = "update"
    version: Literal[1] = 1
    plan: Digest
    state: Digest  # the state that was trained on
    round: Annotated[int, Field(ge=0)]  # of that state
    assignment: Assignment  # what was trained: as assigned, or a part of it
    device: DeviceName
    inputs: Digest  # salted digest of the texts: tells "the same again" without telling what
    example_count: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    loss: TrainingLoss
    # What the method reports beside tensors.
    numbers: dict[FieldName, float] = Field(default_factory=dict, max_length=MOST_NUMBERS)
    tensors: Many[TensorReference]
    files: Many[FileReference]
