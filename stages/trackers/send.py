"""A run that is over, or goes on elsewhere, for a tracker: from its artifacts alone."""

from dataclasses import dataclass
from pathlib import Path

from stages.run_view.view import RoundView, RunView
from stages.trackers.content import costs, numbers, tracked_run
from stages.trackers.tracker import open_tracking


@dataclass(frozen=True)
class Sent:
    """What a tracker now holds."""

    recorded: int  # rounds that were new to it, round 0 among them
    known: int
    shown_by: str  # the command that shows it


def send(run: RunView, name: str, directory: Path) -> Sent:
    """Record what the tracker of that name does not hold yet.  Raises as `open_tracking` does."""
    tracking = open_tracking(name, directory, tracked_run(run.plan, run.plan_digest))
    try:
        before: dict[str, float] = {run.before.metric: run.before.value} if run.before else {}
        tracking.round(0, before)
        for line in run.rounds:
            tracking.round(line.number, metrics_of_round(line))
    finally:
        tracking.close()
    rounds = len(run.rounds) + bool(before)
    return Sent(tracking.recorded, rounds - tracking.recorded, tracking.tracker.shown_by)


def metrics_of_round(found: RoundView) -> dict[str, float]:
    """Of a round that a run's artifacts tell of."""
    told = {
        "updates": len(found.accepted),
        "train_loss": found.train_loss,
        "predicted_peak_bytes": found.predicted_peak_bytes,
    }
    score = {found.score.metric: found.score.value} if found.score else {}
    return numbers(score | told | (costs(found.cost) if found.cost else {}))
