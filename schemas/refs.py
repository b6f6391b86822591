"""References, names and numbers: digests, files, tensors, labels, windows, devices, models.

Every number has bounds, far outside real ones, so that all sums and means of it exist and can be written and read.
"""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from schemas.base import Many, Record, canonical_json, sha256_digest

LARGEST_INT = 2**53  # exact as a float64, which is what many readers of JSON have
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
SignedInt = Annotated[int, Field(ge=-LARGEST_INT, le=LARGEST_INT)]
LARGEST_TOTAL = 2**80  # of such numbers: of 2^17 devices in 2^10 rounds
Total = Annotated[int, Field(ge=0, le=LARGEST_TOTAL)]

LARGEST_LOSS = 2.0**128  # above every float32, so above every loss that a model computes
Loss = Annotated[float, Field(ge=0, le=LARGEST_LOSS)]  # a cross-entropy or a squared difference: never negative
Number = Annotated[float, Field(ge=-(2.0**1023), le=2.0**1023)]  # a score of any kind; half of what float64 holds

MOST_LAYERS = 4096
Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]

Dtype = Literal["float32", "bfloat16", "float16"]

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]

# Valid on FAT and exFAT sticks: no colons, no separators, no leading dot, no trailing dot or space.
# Lower case only, so that two names never differ only by case.
DeviceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]

FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]$")]

TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.]{0,254}$")]

PublicKey = Annotated[str, StringConstraints(pattern=r"^ed25519:[0-9a-f]{64}$")]

LABEL_LENGTH = 256  # characters
# Composed characters, so that what looks the same is the same: macOS decomposes the names of files.
Label = Annotated[
    str,
    AfterValidator(lambda label: unicodedata.normalize("NFC", label)),
    StringConstraints(min_length=1, max_length=LABEL_LENGTH),
]


class FileReference(Record):
    """A file of an artifact: its name inside the directory, its size and its hash."""

    name: FileName
    size_bytes: NonNegativeInt
    sha256: Digest


class TensorReference(Record):
    """A tensor of an artifact, hashed over its little-endian, row-major bytes."""

    name: TensorName
    dtype: Literal["F32"]  # adapters and heads are stored and averaged in float32, whatever the compute dtype
    shape: Many[PositiveInt]
    sha256: Digest


class Window(Record):
    """Layers `start … stop-1`, half-open.  `start == stop == num_layers`: only the head trains."""

    start: Annotated[int, Field(ge=0, le=MOST_LAYERS)]
    stop: Annotated[int, Field(ge=0, le=MOST_LAYERS)]

    @model_validator(mode="after")
    def _start_is_not_after_stop(self) -> "Window":
        if self.start > self.stop:
            raise ValueError("a window must start at or before its stop")
        return self

    @property
    def layers(self) -> range:
        """Indices of the layers in the window."""
        return range(self.start, self.stop)

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1}" if self.layers else "head"


class ModelFingerprint(Record):
    """A base model's content: a device checks each part while it streams it.

    Each digest covers the sorted tensor names on disk, their dtypes, shapes and bytes.
    """

    model_type: str  # transformers' name of the architecture
    num_layers: PositiveInt
    hidden_size: PositiveInt
    config: Digest
    tokenizer: Digest
    embeddings: Digest  # the token embedding table
    layers: Many[Digest]
    rest: Digest  # everything else: position embeddings, norms, pooler

    @model_validator(mode="after")
    def _one_digest_a_layer(self) -> "ModelFingerprint":
        if len(self.layers) != self.num_layers:
            raise ValueError("a fingerprint needs one digest for each layer")
        return self

    @property
    def digest(self) -> str:
        """One digest for the whole model."""
        return sha256_digest(canonical_json(self.model_dump(mode="json")))
