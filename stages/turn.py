"""A device's turn in a round: opens and checks plan and state once, and says what this device trains.

turn = Turn.open(plan, state, "device-03", signer=signer)     # or an error that says why it has no turn
examples = turn.read(data)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.assignment import Assignment
from schemas.base import canonical_json
from schemas.devices import PlannedDevice
from schemas.errors import BadInput, UsageProblem, some
from schemas.plan import PlanManifest
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.data.load import Example, data_digest, load_labelled
from stages.federated.intake import check_example_count
from stages.methods.registry import server_method
from stages.store.artifact import Artifact
from stages.store.devices import find_device, participants, takes_part
from stages.store.newest import check_newest, remember
from stages.store.signing import Signer
from stages.store.tensors import FLOAT32, elements
from stages.store.trust import check_signer, open_trusted
from stages.streaming.texts import training_batches
from stages.training.resume import TrainingCheckpoint


@dataclass(frozen=True)
class Turn:
    """A device's assignment in a round, with the plan and state that it belongs to."""

    plan: Artifact[PlanManifest]
    state: Artifact[StateManifest]
    planned: PlannedDevice
    assignment: Assignment

    @classmethod
    def open(
        cls, plan: Path, state: Path, device: str, *, signer: Signer | None = None, window_size: int | None = None
    ) -> "Turn":
        """Check that both are trusted here, that `device` takes part, and that `signer` is the key it enrolled.

        `window_size`: how many of the assigned layers to train (None: all).  Raises `BadInput`, `NotTrusted` and
        `UsageProblem`.
        """
        planned, current = open_trusted(plan, state)
        check_newest(planned, current)
        method = server_method(planned.manifest.settings.chain.method)
        if not method.trains:
            raise UsageProblem(
                "this plan trains nothing",
                values={"chain.method": method.name},
                hint="evaluate its state 0 with 'chainctl eval'",
            )
        if not takes_part(current, device):
            raise BadInput(
                f"device {device} does not take part in round {current.manifest.round}",
                values={"expected": some(participants(current)), "found": device},
                hint="check --device, or wait for a round that names it",
            )
        known = find_device(planned, device)
        if known is None:
            raise BadInput(
                f"{state} names a device that its plan does not know",
                values={"expected": f"one of {planned.manifest.device_count} planned devices", "found": device},
                hint="ask the coordinator for plan and state of one federation",
            )
        check_signer(planned.manifest.trust, known.key, signer, whose=f"device {device}")
        assigned = method.assignment(planned.manifest, current.manifest, device)
        trained = assigned if window_size is None else method.narrowed(assigned, window_size)
        if trained is None:
            raise UsageProblem(
                "this device cannot train that many layers of the round's assignment",
                values={
                    "this round trains": f"{len(assigned.layers)} layers, {assigned}",
                    "--window-size": window_size,
                },
                hint="of the chain's window a device may train fewer layers, not more; of other methods all or none",
            )
        return cls(planned, current, known, trained)

    @property
    def device(self) -> str:
        """Its name."""
        return self.planned.name

    @property
    def settings(self) -> Settings:
        """The plan's settings."""
        return self.plan.manifest.settings

    def read(self, data: Path) -> list[Example]:
        """The device's texts.  Raises `BadInput`, also if there are more than the plan allows this device."""
        examples = load_labelled(data, self.settings.task, self.settings.prompt)
        check_example_count(self.device, len(examples), self.planned.max_example_count)
        return examples

    def inputs(self, examples: Sequence[Example]) -> str:
        """A digest of the texts, salted by plan and device so that equal texts give different digests elsewhere."""
        salt = canonical_json(["update", self.plan.digest, self.device]).decode()
        return data_digest(list(examples), salt=salt)

    def made(self, inputs: str) -> Callable[[UpdateManifest], bool]:
        """A check whether an update was made in this turn, from the same texts."""
        wanted = (self.plan.digest, self.state.digest, self.assignment, self.device, inputs)
        return lambda found: (found.plan, found.state, found.assignment, found.device, found.inputs) == wanted

    def batches(self, count: int) -> tuple[list[list[int]], list[int]]:
        """Each step's batch, as indices into the texts that any step uses; and those texts, as indices of all."""
        round_number = self.state.manifest.round
        order = training_batches(
            count, self.settings.optimizer, seed=self.settings.seed, round_number=round_number, device=self.device
        )
        seen = sorted({index for batch in order for index in batch})
        place = {index: position for position, index in enumerate(seen)}
        return [[place[index] for index in batch] for batch in order], seen

    def checkpoint(
        self, out: Path, every: int | None, inputs: str, *, signer: Signer | None = None
    ) -> TrainingCheckpoint:
        """The checkpoint of the update at `out`, written after every `every` steps (None: never)."""
        return TrainingCheckpoint.beside(
            out,
            every,
            plan=self.plan.digest,
            state=self.state.digest,
            assignment=self.assignment,
            device=self.device,
            inputs=inputs,
            signer=signer,
        )

    def described(self) -> dict[str, object]:
        """Which round trains what."""
        return {"round": self.state.manifest.round, "layers": list(self.assignment.layers)}

    def alike(self, example_count: int) -> Callable[[UpdateManifest], bool]:
        """A check whether an update took the same work: this device's, of the same layers, from as many texts."""
        wanted = (self.plan.digest, self.assignment, self.device, example_count)
        return lambda found: (found.plan, found.assignment, found.device, found.example_count) == wanted

    def predicted_peak_bytes(self) -> int | None:
        """The peak that the plan predicts for this assignment; None if it predicts none."""
        memory = self.plan.manifest.memory
        return next((one.predicted_peak_bytes for one in memory if one.assignment == self.assignment), None)

    def update_bytes(self) -> int:
        """Bytes of the tensors of this turn's update."""
        plan, state = self.plan.manifest, self.state.manifest
        shapes = server_method(plan.settings.chain.method).expected(plan, state, self.assignment).shapes
        return FLOAT32.itemsize * sum(map(elements, shapes.values()))

    def update(self, inputs: str, facts: dict[str, Any]) -> UpdateManifest:
        """The manifest of this turn's update; `facts` are the fields that training decides."""
        return UpdateManifest(
            plan=self.plan.digest,
            state=self.state.digest,
            round=self.state.manifest.round,
            assignment=self.assignment,
            device=self.device,
            inputs=inputs,
            **facts,
        )

    def remember(self) -> None:
        """Record the state: from now on this machine accepts only states that come from it."""
        remember(self.plan, self.state)
