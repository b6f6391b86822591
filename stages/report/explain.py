"""Plans and artifacts in words."""

from typing import Any

from schemas.benchmark import BenchmarkManifest
from schemas.evaluation import EvaluationManifest
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.report.tables import format_bytes
from stages.store.artifact import Artifact

BAR = 40

REASONS = {
    "below-threshold": "layer {start} is the first whose CKA falls below T = {threshold}",
    "clamped": "CKA falls below T = {threshold} only behind layer {start}, the last that leaves room for a window",
    "no-layer-below-threshold": "no layer falls below T = {threshold}; {start} is the last with room for a window",
    "fixed": "layer {start} was fixed in the recipe (no FOAT)",
    "method": "the method {method} decides it",
}


EARLY_WORDS = (
    "Mind: windows before the last one train on what the language head reads in the middle of the model. Small models "
    'got worse by it; chain.start = "last" trains the last window alone (docs/experiments.md).'
)


def explain_plan(plan: PlanManifest) -> str:
    """The curve, the threshold, the start layer and why, the memory of each window, and who limits Q."""
    chain = plan.settings.chain
    lines = ["CKA between the reference and each layer's output (mean over devices, 95 %):"]
    for layer, similarity in enumerate(plan.curve):
        bar = "█" * round(BAR * min(max(similarity.cka, 0), 1))
        mark = " <- start" if layer == plan.start_layer else ""
        lines.append(f"  {layer:>3}  {similarity.cka:6.3f} ±{similarity.high - similarity.cka:.3f}  {bar}{mark}")
    reason = REASONS[plan.start_reason].format(
        start=plan.start_layer, threshold=chain.cka_threshold, method=chain.method
    )
    lines.append(f"Start layer {plan.start_layer}: {reason}.")
    earliest, latest = plan.start_range
    if plan.start_reason not in ("fixed", "method"):
        sure = "the intervals allow no other" if earliest == latest else f"the intervals allow {earliest} to {latest}"
        lines.append(f"How sure: {sure}.")
    if asks_for_words_too_early(plan):
        lines.append(EARLY_WORDS)
    for device in plan.devices:
        if device.left_out:
            lines.append(f"Not in the curve: {device.name}, {device.left_out}.")
    limit = f"device {plan.limited_by} allows no more" if plan.limited_by else "no device's budget limits it"
    lines.append(f"Window size Q = {chain.window_size}: {limit}.")
    smallest = min(plan.devices, key=lambda device: device.memory_budget_bytes)
    budget = format_bytes(smallest.memory_budget_bytes)
    lines.append(f"Predicted peak of each window (smallest budget {budget}, {smallest.name}):")
    lines += [f"  layers {entry.window!s:<7} {format_bytes(entry.predicted_peak_bytes)}" for entry in plan.memory]
    return "\n".join(lines)


def asks_for_words_too_early(plan: PlanManifest) -> bool:
    """Whether windows of a language model end before the last layer: the head then reads what are no words yet."""
    return plan.settings.task.kind == "causal-lm" and plan.windows[0].stop < plan.model.num_layers


def describe_artifact(artifact: Artifact[Any]) -> str:
    """A few lines on an artifact of any kind."""
    manifest = artifact.manifest
    lines = [f"{manifest.KIND} v{manifest.version}  {artifact.digest}"]
    lines += [f"  {label:<13} {value}" for label, value in _facts(manifest)]
    measured = artifact.measured()
    if measured is not None:
        peak = format_bytes(measured.peak_bytes) if measured.peak_bytes else "unknown"
        lines.append(f"  {'measured':<13} {measured.seconds:.1f} s, peak {peak}, {measured.machine}")
    return "\n".join(lines)


def _facts(manifest: object) -> list[tuple[str, object]]:
    match manifest:
        case ProfileManifest():
            curve = " ".join(f"{layer.cka:.3f}" for layer in manifest.layers) or "none: too few texts"
            return [
                ("device", f"{manifest.device}, budget {format_bytes(manifest.memory_budget_bytes)}"),
                ("model", f"{manifest.model.model_type}, {manifest.model.num_layers} layers, {manifest.model.digest}"),
                ("texts", f"{manifest.example_count}, {manifest.profiled_count} in the curve"),
                ("CKA", curve),
            ]
        case PlanManifest():
            chain = manifest.settings.chain
            return [
                ("model", f"{manifest.model.model_type}, {manifest.model.num_layers} layers, {manifest.model.digest}"),
                ("devices", len(manifest.devices)),
                ("method", f"{chain.method}, start {manifest.start_layer} ({manifest.start_reason})"),
                ("windows", ", ".join(str(window) for window in manifest.windows)),
                ("labels", ", ".join(manifest.settings.task.labels)),
            ]
        case StateManifest():
            return [
                ("plan", manifest.plan),
                ("parent", manifest.parent or "none: fresh"),
                ("round", manifest.round),
                ("accepted", ", ".join(update.device for update in manifest.accepted) or "none"),
                ("next window", manifest.window),
                ("next devices", ", ".join(manifest.participants)),
                (
                    "tensors",
                    f"{len(manifest.tensors)}, {format_bytes(sum(file.size_bytes for file in manifest.files))}",
                ),
            ]
        case UpdateManifest():
            return [
                ("plan", manifest.plan),
                ("state", f"{manifest.state} (round {manifest.round})"),
                ("device", f"{manifest.device}, {manifest.example_count} texts, {manifest.steps} steps"),
                ("window", manifest.window),
                ("loss", f"{manifest.loss.first:.4f} -> {manifest.loss.last:.4f}"),
                (
                    "tensors",
                    f"{len(manifest.tensors)}, {format_bytes(sum(file.size_bytes for file in manifest.files))}",
                ),
            ]
        case EvaluationManifest():
            return [
                ("plan", manifest.plan),
                ("state", f"{manifest.state} (round {manifest.round})"),
                ("accuracy", f"{manifest.accuracy.value:.4f} on {manifest.example_count} texts"),
                ("macro-F1", f"{manifest.macro_f1.value:.4f}"),
            ]
        case PerplexityManifest():
            return [
                ("plan", manifest.plan),
                ("state", f"{manifest.state} (round {manifest.round})"),
                ("perplexity", f"{manifest.perplexity.value:.4f} on {manifest.example_count} texts"),
                ("loss", f"{manifest.loss.value:.4f} nats on {manifest.token_count} tokens"),
            ]
        case BenchmarkManifest():
            return [
                ("plan", manifest.plan),
                ("state", f"{manifest.state} (round {manifest.round})"),
                ("benchmark", f"{manifest.benchmark}, {manifest.example_count} questions"),
                *((score.metric, f"{score.overall.value:.4f}") for score in manifest.scores),
            ]
    raise ValueError(f"no artifact: {type(manifest).__name__}")
