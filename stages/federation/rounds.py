"""The rounds of a simulation: train on every participant, aggregate, evaluate."""

from collections import Counter
from dataclasses import dataclass

from schemas.assignment import described
from schemas.measured import spent
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.refusal import Reason
from schemas.run import RoundLine
from schemas.state import StateManifest
from stages import aggregate, eval
from stages.federated.costs import cost_of_round
from stages.federation.fleet import Fleet
from stages.federation.folder import RunFolder
from stages.federation.prepare import Federation
from stages.process.progress import Progress
from stages.session import Machine
from stages.store.artifact import Artifact
from stages.store.devices import participants


@dataclass(frozen=True)
class Score:
    """How good a state is on the test texts: whichever of the two the task has."""

    accuracy: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Rounds:
    """The rounds of one run."""

    federation: Federation
    plan: Artifact[PlanManifest]
    fleet: Fleet
    machine: Machine
    folder: RunFolder
    progress: Progress

    def one(self, state: Artifact[StateManifest]) -> tuple[Artifact[StateManifest], RoundLine]:
        """Train on every participant, aggregate, evaluate."""
        updates = self.fleet.train(self.plan, state, list(participants(state)))
        cost = cost_of_round(updates, state)  # now: what is refused is moved away
        predicted = [found.predicted_peak_bytes or 0 for update in updates if (found := update.measured())]
        refused: Counter[Reason] = Counter()
        following = aggregate.run(
            [update.path for update in updates],
            plan=self.plan.path,
            state=state.path,
            out=self.folder.state(state.manifest.round + 1),
            on_refusal=lambda one, _: refused.update([one.reason]),
        )
        number = following.manifest.round
        due = number % self.federation.eval_every == 0 or number == self.federation.rounds
        score = self.evaluate(number) if due else Score()
        return following, RoundLine(
            round=number,
            trained=described(state.manifest.assignment),
            devices=len(updates),
            refused=dict(refused),
            train_loss=following.manifest.train_loss or 0.0,
            accuracy=score.accuracy,
            perplexity=score.perplexity,
            predicted_peak_bytes=max(predicted, default=0),
            **spent([cost]),
        )

    def evaluate(self, round_number: int) -> Score:
        """How good a state is on the test texts."""
        evaluation = eval.run(
            machine=self.machine,
            plan=self.plan.path,
            state=self.folder.state(round_number),
            data=self.federation.test,
            out=self.folder.evaluation(round_number),
            progress=self.progress,
        )
        if isinstance(evaluation.manifest, PerplexityManifest):
            return Score(perplexity=evaluation.manifest.perplexity.value)
        return Score(accuracy=evaluation.manifest.accuracy.value)
