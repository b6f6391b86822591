"""Who runs the devices of a simulation.  Today this process does, one device after the other.

A fleet gets plan, state and names, and gives back the updates of whoever delivered; the rounds know nothing else of it.
Worker processes, Ray or Flower could be further fleets, one file each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.plan import PlanManifest
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages import train_window
from stages.federation.folder import RunFolder
from stages.process.progress import Progress
from stages.session import Machine
from stages.store.artifact import Artifact


class Fleet(Protocol):
    """Devices that can be asked to train."""

    def train(
        self, plan: Artifact[PlanManifest], state: Artifact[StateManifest], devices: Sequence[str]
    ) -> list[Artifact[UpdateManifest]]:
        """The updates of a round, in the order of `devices`.  Raises whatever a device's stage raises."""
        ...


@dataclass(frozen=True)
class InThisProcess:
    """All devices in one process, on one machine that simulates."""

    machine: Machine
    folder: RunFolder
    progress: Progress

    def train(
        self, plan: Artifact[PlanManifest], state: Artifact[StateManifest], devices: Sequence[str]
    ) -> list[Artifact[UpdateManifest]]:
        """One device after the other."""
        return [
            train_window.run(
                machine=self.machine,
                plan=plan.path,
                state=state.path,
                data=self.folder.shard(device),
                device=device,
                out=self.folder.update(state.manifest.round, device),
                progress=self.progress,
            )
            for device in devices
        ]
