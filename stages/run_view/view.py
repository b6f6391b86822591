"""A run as its artifacts tell it: what `status`, reports and trackers show.

A round has the number of the state that it made, as `log` and `simulate` print it: round 1 made state 1.  Seconds,
bytes and peaks are what devices measured and said themselves (`measured.json`): no signature covers them, and they
decide nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from schemas.assignment import Assignment, described
from schemas.measured import Cost
from schemas.plan import PlanManifest
from schemas.refusal import Reason
from schemas.run import FederationManifest
from stages.store.lineage import left_out_note

Metric = Literal["accuracy", "perplexity"]
ACCURACY: Metric = "accuracy"
PERPLEXITY: Metric = "perplexity"
Problem = Literal["", "missing", "not trusted"]  # why nothing is known of a state but what the ledger says
WITHOUT_SIGNATURES = "nothing here is signed: whoever could write to the folder can have altered what it says"
BY_THE_COORDINATOR = (
    "plan, states and evaluations are signed by the coordinator; costs and peaks are what devices say of themselves"
)
NOT_REMEMBERED = "this machine has not written to the ledger: its lines vouch for each other, and nothing for the last"


@dataclass(frozen=True)
class Score:
    """How well a state does on held-out texts, with its 95 % interval."""

    state: str
    round: int
    metric: Metric
    value: float
    low: float
    high: float
    texts: int
    data: str  # digest of those texts


@dataclass(frozen=True)
class Refusal:
    """An update that did not count, and what it claimed to be."""

    device: str | None  # None where that could not be read; nobody has checked the name
    reason: Reason
    update: str | None


@dataclass(frozen=True)
class RoundView:
    """A closed round, and the state that it made.

    What only the state's artifact knows is None where that is not here, or not signed as the plan asks: `problem` then
    says which.
    """

    number: int
    state: str
    parent: str
    known: bool  # whether the state that was trained is here
    assignment: Assignment | None  # None also where it differed by device
    kept: tuple[int, ...]  # layers that too few devices trained: they stayed as they were
    moved: bool | None
    asked: int  # devices that were to take part
    accepted: tuple[str, ...]  # devices whose updates counted
    refused: tuple[Refusal, ...]
    texts: int | None  # behind the updates
    train_loss: float | None
    score: Score | None
    cost: Cost | None
    predicted_peak_bytes: int | None  # the plan's, or the largest that a device predicted
    problem: Problem

    @property
    def trained(self) -> str:
        """The layers that were trained, for people; empty where that is not known."""
        return described(self.assignment) if self.known else ""


@dataclass(frozen=True)
class OpenRound:
    """The round that updates are awaited for; `number` is that of the state that it would make."""

    number: int
    assignment: Assignment | None
    participants: tuple[str, ...]
    delivered: tuple[str, ...]
    refused: tuple[tuple[str, Reason], ...]  # device, or folder where no device could be read

    @property
    def missing(self) -> tuple[str, ...]:
        """Who has not delivered anything that counts."""
        there = set(self.delivered)
        return tuple(name for name in self.participants if name not in there)


@dataclass(frozen=True)
class DeviceView:
    """A device over all closed rounds; sums, and the largest peaks.  `measured`: updates whose costs are here."""

    name: str
    planned: bool  # False: only refused updates name it
    texts: int
    budget_bytes: int | None
    left_out: str  # why its curve is not in the plan's; empty where it is
    asked: int
    accepted: int
    refused: tuple[Reason, ...]
    train_loss: float | None  # in the last round that it took part in
    measured: int
    seconds: float
    peak_bytes: int
    predicted_peak_bytes: int
    passes: int
    bytes_read: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class RunView:
    """A run folder: a simulation's or a coordinator's."""

    name: str  # of the folder
    plan: PlanManifest
    plan_digest: str
    state: str  # the newest one
    remembered: bool  # whether this machine wrote to the ledger and it says what it said then
    federation: FederationManifest | None  # of a simulation: what it is made of
    scores: tuple[Score, ...]  # all that are believed
    before: Score | None  # of state 0
    problem: Problem  # of state 0
    rounds: tuple[RoundView, ...]
    abandoned: int  # rounds that closed and that no state of this history comes from
    closed: int  # rounds, those included
    counted: int  # updates
    refused: int  # updates
    open: OpenRound  # of a simulation: the round after its last, for which nobody trains
    devices: tuple[DeviceView, ...]  # by name; empty where they were not asked for
    left_out: int  # evaluations of this plan that the right key did not sign

    @property
    def signed(self) -> bool:
        """Whether the plan asks for signatures, which everything here then carries."""
        return self.plan.trust.required

    @property
    def cost(self) -> Cost:
        """Of all closed rounds whose states are here."""
        return Cost.sum(line.cost for line in self.rounds if line.cost)

    @property
    def newest_score(self) -> Score | None:
        """That of the newest state that was evaluated."""
        return max(self.scores, key=lambda score: score.round, default=None)

    @property
    def last(self) -> Score | None:
        """The newest score on the texts that the rounds are compared on."""
        scores = [line.score for line in self.rounds if line.score]
        return scores[-1] if scores else self.before

    def notes(self) -> Iterator[str]:
        """What a person should know before believing any of it, the most important first."""
        yield BY_THE_COORDINATOR if self.signed else WITHOUT_SIGNATURES
        if self.signed and not self.remembered:
            yield NOT_REMEMBERED
        for problem, why in (("not trusted", "are not signed by the coordinator"), ("missing", "are not here")):
            count = sum(line.problem == problem for line in self.rounds)
            if count:
                yield f"{count} of {len(self.rounds)} states {why}: of their rounds only the ledger tells"
        if self.problem:
            why = "is not here" if self.problem == "missing" else "is not signed by the coordinator"
            yield f"the first state {why}"
        if self.abandoned:
            yield f"{self.abandoned} rounds closed and were abandoned: another state took their place"
        others = len(self.scores) - sum(line.score is not None for line in self.rounds) - (self.before is not None)
        if others:
            yield f"{others} evaluations are of other texts or of abandoned states, and not compared here"
        if self.left_out:
            yield left_out_note(self.left_out)
