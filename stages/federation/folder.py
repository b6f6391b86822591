"""Where a simulated federation keeps what.

run/shards/device-00.jsonl …       each device's texts
run/profiles/device-00 …           each device's profile
run/plan  run/states/0000 …        the coordinator's plan and states
run/updates/0000/device-03 …       the updates of each round
run/evals/0000 …                   the evaluation of every state
run/cache  run/home                hidden states that never change; keys and trust of nobody
run/federation.json                what the run is made of
run/summary.json                   what came of it (both: schemas/run.py)
"""

from dataclasses import dataclass
from pathlib import Path

from schemas.run import FEDERATION_FILE


@dataclass(frozen=True)
class RunFolder:
    """The places of one run below `path`."""

    path: Path

    @property
    def shards(self) -> Path:
        """Folder of all devices' texts."""
        return self.path / "shards"

    @property
    def profiles(self) -> Path:
        """Folder of all profiles."""
        return self.path / "profiles"

    @property
    def plan(self) -> Path:
        """The plan artifact."""
        return self.path / "plan"

    @property
    def federation(self) -> Path:
        """The manifest that says what the run is made of."""
        return self.path / FEDERATION_FILE

    @property
    def summary(self) -> Path:
        """The manifest that says what came of it."""
        return self.path / "summary.json"

    def shard(self, device: str) -> Path:
        """A device's texts."""
        return self.shards / f"{device}.jsonl"

    def state(self, round_number: int) -> Path:
        """The state that a round starts from."""
        return self.path / "states" / f"{round_number:04d}"

    def update(self, round_number: int, device: str) -> Path:
        """The update of a device in a round."""
        return self.path / "updates" / f"{round_number:04d}" / device

    def evaluation(self, round_number: int) -> Path:
        """The evaluation of a round's state."""
        return self.path / "evals" / f"{round_number:04d}"
