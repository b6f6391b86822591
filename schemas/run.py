"""Run v1: what a simulated federation is made of, and what came of it.

    run/federation.json     everything that decides the run: it is continued by the same command only
    run/summary.json        its rounds, its scores, what it cost
    demo/summary.json       the demo's, of two runs

Seconds and peaks differ from run to run, so a summary decides nothing.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many
from schemas.devices import MOST_DEVICES
from schemas.measured import Cost, Seconds, Spent, spent
from schemas.refs import Digest, Loss, NonNegativeInt, Number, PositiveInt, Total
from schemas.refusal import Reason
from schemas.settings import Settings

FEDERATION_FILE = "federation.json"
MOST_ROUNDS = 900  # a summary has a few lines for each of them


class FederationManifest(Manifest):
    """Everything that decides a simulated run; how many rounds it goes on does not."""

    KIND: ClassVar[str] = "federation"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES

    kind: Literal["federation"] = "federation"
    version: Literal[1] = 1
    data: Digest
    test: Digest
    devices: Annotated[int, Field(ge=1, le=MOST_DEVICES)]
    alpha: Number | None  # Dirichlet concentration of the label skew; None: split evenly
    memory_budgets: Many[PositiveInt]  # bytes, in turn; empty: the machine's memory
    settings: Settings


class RoundLine(Spent):
    """One round.  Costs are sums over its devices, `peak_bytes` the largest of theirs.

    A task has accuracy or perplexity, where the round was evaluated.
    """

    round: PositiveInt
    trained: str
    devices: NonNegativeInt  # that trained
    refused: dict[Reason, NonNegativeInt]  # how many of their updates did not count, by reason
    train_loss: Loss
    accuracy: Number | None
    perplexity: Number | None
    predicted_peak_bytes: NonNegativeInt

    def line(self) -> str:
        """For people and logs."""
        return (
            f"round {self.round:>3}  layers {self.trained:<5}  {self.devices:>3} devices  {self._refused()}"
            f"loss {self.train_loss:.4f}  "
            f"{self._score()}{self.seconds:5.1f} s  peak {self.peak_bytes / 2**20:.0f} MiB  "
            f"passes {self.per_text:.1f}  "
            f"up {self.bytes_up / 2**10:.0f} KiB  down {self.bytes_down / 2**10:.0f} KiB"
        )

    def _refused(self) -> str:
        reasons = ", ".join(f"{count} refused: {reason}" for reason, count in sorted(self.refused.items()))
        return f"({reasons})  " if reasons else ""

    def _score(self) -> str:
        scores = (("accuracy", self.accuracy), ("perplexity", self.perplexity))
        return "".join(f"{name} {value:.4f}  " for name, value in scores if value is not None)


class SimulationSummary(Manifest):
    """The whole run.  Costs are summed over all rounds and devices, peaks are the largest."""

    KIND: ClassVar[str] = "simulation-summary"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES
    SMALLER: ClassVar[str] = f"simulate at most {MOST_ROUNDS} rounds"

    kind: Literal["simulation-summary"] = "simulation-summary"
    version: Literal[1] = 1
    plan: Digest
    final_state: Digest
    accuracy_before: Number | None
    accuracy_after: Number | None
    perplexity_before: Number | None
    perplexity_after: Number | None
    rounds: Annotated[Many[RoundLine], Field(max_length=MOST_ROUNDS)]
    first_layer: NonNegativeInt  # that has adapters
    assignments: NonNegativeInt  # that rounds go through
    passes: Total
    visits: Total
    bytes_read: Total
    bytes_up: Total
    bytes_down: Total
    peak_bytes: NonNegativeInt
    predicted_peak_bytes: NonNegativeInt

    @property
    def cost(self) -> Cost:
        """What all updates cost."""
        return Cost(updates=sum(line.devices for line in self.rounds), **spent(self.rounds))

    @model_validator(mode="after")
    def _totals_are_those_of_the_rounds(self) -> "SimulationSummary":
        expected = totals(self.rounds)
        if {name: getattr(self, name) for name in expected} != expected:
            raise ValueError("costs are summed over the rounds, and peaks are the largest of them")
        return self


def totals(rounds: tuple[RoundLine, ...]) -> dict[str, Any]:
    """Costs of all rounds, and the largest peaks, as a summary holds them."""
    found = spent(rounds) | {"predicted_peak_bytes": max((line.predicted_peak_bytes for line in rounds), default=0)}
    return {name: value for name, value in found.items() if name != "seconds"}


class DemoSummary(Manifest):
    """The demo: the chain beside a linear probe."""

    KIND: ClassVar[str] = "demo-summary"

    kind: Literal["demo-summary"] = "demo-summary"
    version: Literal[1] = 1
    accuracy_before: Number
    accuracy_after: Number
    accuracy_linear_probe: Number
    seconds: Seconds
    seconds_without_assets: Seconds
    peak_memory_bytes: NonNegativeInt
    predicted_peak_memory_bytes: NonNegativeInt
    bytes_up: Total
    bytes_down: Total
    final_state: Digest
