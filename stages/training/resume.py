"""A `train-window` that was stopped resumes from its last checkpoint, to the same bytes.

    updates/.device-03.checkpoint/      an artifact, beside the update that training will write

A checkpoint holds everything that training changes.  It does not hold the prefix's hidden states (`--cache-dir` keeps
those).  A checkpoint of other inputs, or one that was altered, is ignored.  With a key it is signed, and only one with
that key's signature is used: whoever can write beside the update can put one there that fits.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from schemas.assignment import Assignment
from schemas.checkpoint import MOST_STEPS, CheckpointManifest, FinishedStep
from schemas.errors import ChainError, UsageProblem
from stages.process import intent
from stages.store.artifact import Artifact, new_artifact, open_artifact, read_tensors
from stages.store.files import sweep
from stages.store.signing import Signer, check_signature
from stages.store.tensors import LazyTensors

log = logging.getLogger(__name__)


class Resumable(Protocol):
    """Everything that a step changes."""

    def tensors(self) -> LazyTensors:
        """Tensors by name, float32."""
        ...

    def restore(self, tensors: Mapping[str, np.ndarray], *, steps: int) -> None:
        """Resume after `steps` steps, from the `tensors` that they left."""
        ...


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The checkpoint of one `train-window`, written after every `every` steps (None: never)."""

    path: Path
    every: int | None
    plan: str
    state: str
    assignment: Assignment
    device: str
    inputs: str
    signer: Signer | None = None

    @classmethod
    def beside(
        cls,
        out: Path,
        every: int | None,
        *,
        plan: str,
        state: str,
        assignment: Assignment,
        device: str,
        inputs: str,
        signer: Signer | None = None,
    ) -> "TrainingCheckpoint":
        """The checkpoint for the update that will be written to `out`, and signed by `signer`."""
        return cls(out.parent / f".{out.name}.checkpoint", every, plan, state, assignment, device, inputs, signer)

    def check_steps(self, count: int) -> None:
        """A checkpoint after the last of `count` steps could be read.  Raises `UsageProblem` before any work."""
        if self.every is not None and count > MOST_STEPS:
            raise UsageProblem(
                "this round has too many steps for checkpoints",
                values={"at most": f"{MOST_STEPS} steps", "this round": f"{count} steps"},
                hint="leave out --checkpoint-every",
            )
        if self.every is not None:
            intent.will_write(self.path)

    def due(self, steps: int) -> bool:
        """Whether to write a checkpoint after that many steps."""
        return self.every is not None and steps % self.every == 0

    def save(self, optimizer: Resumable, steps: Sequence[FinishedStep]) -> None:
        """Replace the checkpoint in one step: the old one or the new one, never neither."""
        with new_artifact(self.path, force=True, signer=self.signer) as draft:
            tensors, files = draft.write_tensors(optimizer.tensors())
            draft.finish(self._manifest(tuple(steps)).model_copy(update={"tensors": tensors, "files": files}), None)

    def restore(self, optimizer: Resumable) -> tuple[FinishedStep, ...]:
        """Restore parameters and moments; the steps they stand for, or none if there is no usable checkpoint."""
        if not os.path.lexists(self.path):
            return ()
        shapes = dict(optimizer.tensors().shapes)
        try:
            artifact = self._open()
            found = artifact.manifest
            if found.model_copy(update={"tensors": (), "files": ()}) != self._manifest(found.steps):
                return ()
            if {tensor.name: tensor.shape for tensor in found.tensors} != shapes:
                return ()
            tensors = read_tensors(artifact)
        except ChainError as error:
            if self.signer is not None:
                log.warning("note: training starts over, without its checkpoint: %s", error.fact)
            return ()
        optimizer.restore(tensors, steps=len(found.steps))
        return found.steps

    def _open(self) -> Artifact[CheckpointManifest]:
        artifact = open_artifact(self.path, CheckpointManifest)
        if self.signer is not None:
            check_signature(self.path, artifact.bytes(), self.signer.public, whose=self.signer.name)
        return artifact

    def forget(self) -> None:
        """Delete the checkpoint: the work is done."""
        if intent.is_dry_run():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        sweep(self.path)

    def _manifest(self, steps: tuple[FinishedStep, ...]) -> CheckpointManifest:
        return CheckpointManifest(
            plan=self.plan,
            state=self.state,
            assignment=self.assignment,
            device=self.device,
            inputs=self.inputs,
            steps=steps,
            tensors=(),
            files=(),
        )
