"""The values of an update, looked through once: their digests, that they are finite, and how far they went.

No tensor is ever held: values pass through in chunks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from schemas.errors import BadInput
from schemas.state import StateManifest
from stages.federated.rules import Update
from stages.store.artifact import Artifact, tensor_file

CHUNK_ELEMENTS = 2**16  # 256 KiB of float32 an update
NOTHING = np.zeros((), np.float32)
LARGEST_NORM = 2.0**63  # its square is a float32, so a server optimizer's moments are: a cap where the plan sets none


@dataclass
class Values:
    """The values of an update, looked through once, a chunk at a time."""

    update: Update
    parent: Artifact[StateManifest]
    not_finite: dict[str, int] = field(default_factory=dict)  # how many, by tensor
    squared_norm: float = 0.0  # of update − parent; of the update where the parent has no such tensor

    def read(self) -> None:
        """Size, header and every tensor's SHA-256; and what the other checks want to know.  Raises `NotTrusted`."""
        with tensor_file(self.update) as new, tensor_file(self.parent) as old:
            for name, reference in new.references.items():
                in_parent = name in old.references and old.references[name].shape == reference.shape
                befores = old.chunks(name, CHUNK_ELEMENTS) if in_parent else repeat(NOTHING)
                for after, before in zip(new.checked_chunks(name, CHUNK_ELEMENTS), befores, strict=False):
                    self._look_at(name, after, before)

    def check_finite(self) -> None:
        """No NaN, no infinity."""
        for name, count in self.not_finite.items():
            raise BadInput(
                f"{self.update.path}: tensor {name} holds values that are not numbers",
                values={"expected": "finite values", "found": f"{count} NaN or infinite"},
                hint="its device diverged or is broken",
            )

    def check_norm(self, cap: float | None) -> None:
        """‖update − parent‖ is at most `cap`, and never more than `LARGEST_NORM`."""
        norm, cap = math.sqrt(self.squared_norm), LARGEST_NORM if cap is None else min(cap, LARGEST_NORM)
        if not norm <= cap:
            raise BadInput(
                f"{self.update.path} is further from the state than the plan allows",
                values={"largest norm of the difference": f"{cap:.6g}", "found": f"{norm:.6g}"},
                hint="its device diverged or lies; the cap is federation.max_update_norm",
            )

    def _look_at(self, name: str, after: np.ndarray, before: np.ndarray) -> None:
        with np.errstate(all="ignore"):  # NaN and infinity are what is looked for
            difference = np.subtract(after, before, dtype=np.float64)
            square = float(np.dot(difference, difference))
        if math.isfinite(square):
            self.squared_norm += square
        else:
            wrong = int((~np.isfinite(after)).sum())
            self.not_finite[name] = self.not_finite.get(name, 0) + wrong


def norm(state: Artifact[StateManifest], names: Iterable[str]) -> float:
    """L2 norm of some tensors of a state together."""
    with tensor_file(state) as file:
        chunks = (chunk for name in names for chunk in file.chunks(name, CHUNK_ELEMENTS))
        return math.sqrt(sum(float((chunk.astype(np.float64) ** 2).sum()) for chunk in chunks))
