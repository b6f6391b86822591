"""What trackers are told: numbers of rounds and settings of the plan.  No texts, no labels, no paths, no devices."""

from collections.abc import Mapping

from schemas.measured import Spent
from schemas.plan import PlanManifest
from schemas.recipe import setting_values
from schemas.run import RoundLine
from stages.trackers.tracker import TrackedRun, Value

COSTS = ("seconds", "peak_bytes", "passes", "bytes_read", "bytes_up", "bytes_down")
LEFT_OUT = ("task.labels", "task.text_column", "task.label_column")  # they are from the data


def tracked_run(plan: PlanManifest, digest: str) -> TrackedRun:
    """The run of a plan."""
    return TrackedRun(digest, plan.settings.chain.method, parameters(plan))


def parameters(plan: PlanManifest) -> dict[str, Value]:
    """The settings of a plan by their paths, and what it says of model and devices."""
    settings = {name: value for name, value in setting_values(plan.settings).items() if name not in LEFT_OUT}
    told = {name: value if isinstance(value, Value) else str(value) for name, value in settings.items()}
    return told | {
        "devices": plan.device_count,
        "labels": len(plan.settings.task.labels),
        "model.type": plan.model.model_type,
        "model.layers": plan.model.num_layers,
        "model.hidden_size": plan.model.hidden_size,
    }


def metrics_of_line(line: RoundLine) -> dict[str, float]:
    """Of a round that `simulate` has finished."""
    told = {
        "updates": line.devices - sum(line.refused.values()),
        "train_loss": line.train_loss,
        "predicted_peak_bytes": line.predicted_peak_bytes,
    }
    return score_metrics(line.accuracy, line.perplexity) | numbers(told | costs(line))


def score_metrics(accuracy: float | None, perplexity: float | None) -> dict[str, float]:
    """Whichever of the two there is."""
    return numbers({"accuracy": accuracy, "perplexity": perplexity})


def costs(spent: Spent) -> dict[str, float | None]:
    """What a round cost its devices."""
    return {name: getattr(spent, name) for name in COSTS}


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are known."""
    return {name: float(value) for name, value in values.items() if value is not None}
