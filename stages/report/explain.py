"""Plans and artifacts in words."""

from collections.abc import Iterable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.assignment import described
from schemas.base import Manifest
from schemas.benchmark import BenchmarkManifest
from schemas.devices import PlannedDevice
from schemas.errors import some
from schemas.evaluation import EvaluationManifest
from schemas.head import described_head
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest, TextLengths
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.methods.server import ServerMethod
from stages.process.measure import mebibytes
from stages.report.tables import describe_cost, format_bytes, markdown_table
from stages.store.artifact import Artifact, artifact_lines

if TYPE_CHECKING:  # it loads torch, which whoever reads an artifact need not have
    from stages.methods.options import Option

BAR = 40
CHOICE = (
    "Measured (docs/experiments.md, What a round buys): all layers with the true gradient learn most by rounds and, in "
    "language models, at equal passes; there narrow adapters lead at equal bytes. So window_size = auto takes every "
    "layer; federation.round_passes leaves out the first ones, federation.round_bytes narrows the adapters, then the "
    "window."
)
MOST_NAMED = 8
Facts = list[tuple[str, object]]  # label and value


def explain_plan(plan: PlanManifest, method: ServerMethod, devices: Iterable[PlannedDevice] = ()) -> list[str]:
    """The curve, what the method decided and why, and for each assignment its memory, passes and bytes.

    `devices`: those of the plan, all of them.
    """
    lines = ["CKA between the reference and each layer's output (mean over devices, 95 %):"]
    for layer, similarity in enumerate(plan.curve):
        bar = "█" * round(BAR * min(max(similarity.cka, 0), 1))
        mark = " <- start" if layer == plan.decisions.first_layer else ""
        lines.append(f"  {layer:>3}  {similarity.cka:6.3f} ±{similarity.high - similarity.cka:.3f}  {bar}{mark}")
    lines += [
        *method.explain(plan),
        *head_lines(plan),
        explain_length(plan),
        f"Computes in {plan.settings.numerics.computes_in}; weights stay as they are stored.",
    ]
    lines += plan_warnings(plan, method)
    left_out = [f"{device.name}, {device.left_out}" for device in devices if device.left_out]
    lines += [f"Not in the curve: {one}." for one in left_out[:MOST_NAMED]]
    if len(left_out) > MOST_NAMED:
        lines.append(f"Not in the curve: {len(left_out)} devices in all.")
    smallest = plan.smallest_budget
    budget = format_bytes(smallest.memory_budget_bytes)
    lines.append(
        f"Smallest budget {budget}, {smallest.device}.  Per round and device; passes are layers per text and step:"
    )
    for entry in plan.memory:
        costs = method.costs(plan, entry.assignment)
        passes = f"{costs.forward_passes} forward, {costs.backward_passes} backward"
        travels = f"{format_bytes(costs.bytes_up)} up, {format_bytes(costs.bytes_down)} down"
        peak = format_bytes(entry.predicted_peak_bytes)
        lines.append(f"  layers {entry.assignment!s:<7} predicted peak {peak}, passes {passes}, {travels}")
    return lines


def head_lines(plan: PlanManifest) -> list[str]:
    """Where the head that trains begins."""
    return [f"Head: {line}." for line in described_head(plan.head_parameters)]


def explain_length(plan: PlanManifest) -> str:
    """At how many tokens texts are truncated, and how long the texts of all devices are."""
    most, lengths = plan.settings.encoding.most_tokens, plan.lengths
    if lengths is None:
        return f"Texts are truncated at {most} tokens."
    return f"Texts are truncated at {most} tokens: {describe_lengths(lengths)}."


def describe_lengths(lengths: TextLengths) -> str:
    """How many tokens so many percent of the texts have at most."""
    shown = ", ".join(f"{percentage} % have at most {length}" for percentage, length in lengths.by_percentage().items())
    return f"{shown} (of the first {lengths.read}, which were read)"


def chosen_length(plan: PlanManifest) -> str:
    """What `max_length = "auto"` became, and why."""
    most, lengths = plan.settings.encoding.most_tokens, plan.lengths
    if lengths is not None and most < lengths.read:
        reason = "99 % of all texts have at most that many tokens"
    elif plan.settings.encoding.packing:
        reason = "rows that texts share are as long as what a profile reads of one"
    else:
        reason = "as much as a profile reads of a text, up to the model's limit, or 512 tokens where it has none"
    return f'encoding.max_length = "auto" chose {most}: {reason}'


def explain_options(options: "Sequence[Option]") -> list[str]:
    """What else could be trained, as a table, and how the plan was chosen among it."""
    if not options:
        return []
    widths = list(options[0].sent)
    columns = ("", "Q", "smallest budget", "passes", "read per step", *(f"sent, width {width}" for width in widths))
    rows = []
    for one in options:
        low, high = one.passes
        rows.append(
            (
                f"{one.name} (this plan)" if one.planned else one.name,
                one.window_size,
                mebibytes(one.smallest_budget),
                low if low == high else f"{low} to {high}",
                format_bytes(one.read_per_step),
                *(format_bytes(one.sent[width]) for width in widths),
            )
        )
    return ["What a device's round would cost, at most:", *markdown_table(columns, rows).split("\n"), CHOICE]


def plan_warnings(plan: PlanManifest, method: ServerMethod) -> list[str]:
    """What a person should know before the first round: of the method, and of dtypes that devices emulate."""
    warnings = list(method.warnings(plan))
    if plan.emulating_count:
        compute = plan.settings.numerics.computes_in
        warnings.append(
            f"{plan.emulating_count} of {plan.device_count} devices emulate {compute}, which is many times slower than "
            'float32: numerics.compute = "auto" avoids it.'
        )
    return warnings


def describe_artifact(artifact: Artifact[Any]) -> list[str]:
    """Lines on an artifact of any kind."""
    manifest = artifact.manifest
    lines = [f"{manifest.KIND} v{manifest.version}  {artifact.digest}"]
    lines += [f"  {label:<13} {value}" for label, value in [*facts(manifest), *listed(artifact)]]
    measured = artifact.measured()
    if measured is not None:
        peak = format_bytes(measured.peak_bytes) if measured.peak_bytes else "unknown"
        lines.append(f"  {'measured':<13} {measured.seconds:.1f} s, peak {peak}, {measured.machine}")
        if measured.bytes_streamed:
            read, written = format_bytes(measured.bytes_streamed), format_bytes(measured.bytes_written)
            lines.append(f"  {'disk':<13} {read} of weights read, {written} of temporary files written")
        if measured.passes.visits:
            lines.append(f"  {'passes':<13} {measured.passes.per_text:.1f} through a layer for each text and step")
        if measured.updates is not None and measured.updates.updates:
            lines.append(f"  {'its updates':<13} {describe_cost(measured.updates)}")
    return lines


def listed(artifact: Artifact[Any]) -> Facts:
    """The first few names of each of an artifact's files of lines.  Raises `NotTrusted` and `BadInput`."""
    found: Facts = []
    for file in artifact.manifest.LINES:
        names = [line.name for line in artifact_lines(artifact, file)]
        found.append((Path(file).stem, f"{len(names)}: {some(names, most=MOST_NAMED)}" if names else "none"))
    return found


@singledispatch
def facts(manifest: Manifest) -> Facts:
    """The lines that describe a manifest of any kind.  Raises `ValueError` for what is not an artifact's."""
    raise ValueError(f"not an artifact: {type(manifest).__name__}")


@facts.register
def _profile(manifest: ProfileManifest) -> Facts:
    curve = " ".join(f"{layer.cka:.3f}" for layer in manifest.layers) or "none: too few texts, or too few that differ"
    return [
        ("device", f"{manifest.device}, budget {format_bytes(manifest.memory_budget_bytes)}"),
        ("model", f"{manifest.model.model_type}, {manifest.model.num_layers} layers, {manifest.model.digest}"),
        ("texts", f"{manifest.example_count}, {manifest.profiled_count} in the curve"),
        ("tokens", describe_lengths(manifest.lengths) if manifest.lengths else "none"),
        ("CKA", curve),
    ]


@facts.register
def _plan(manifest: PlanManifest) -> Facts:
    assignments = (entry.assignment for entry in manifest.memory)
    return [
        ("model", f"{manifest.model.model_type}, {manifest.model.num_layers} layers, {manifest.model.digest}"),
        ("texts", f"{manifest.example_count} on {manifest.device_count} devices"),
        ("method", f"{manifest.settings.chain.method}, adapters from layer {manifest.decisions.first_layer}"),
        ("layers", ", ".join(map(str, assignments))),
        ("labels", ", ".join(manifest.settings.task.labels)),
    ]


@facts.register
def _state(manifest: StateManifest) -> Facts:
    return [
        ("plan", manifest.plan),
        ("parent", manifest.parent or "none: fresh"),
        ("round", manifest.round),
        *(("coverage", covered) for covered in manifest.coverage),
        ("next layers", described(manifest.assignment)),
        _tensors(manifest),
    ]


@facts.register
def _update(manifest: UpdateManifest) -> Facts:
    return [
        *_subject(manifest),
        ("device", f"{manifest.device}, {manifest.example_count} texts, {manifest.steps} steps"),
        ("layers", manifest.assignment),
        ("loss", f"{manifest.loss.first:.4f} -> {manifest.loss.last:.4f}"),
        _tensors(manifest),
    ]


@facts.register
def _evaluation(manifest: EvaluationManifest) -> Facts:
    return [
        *_subject(manifest),
        ("accuracy", f"{manifest.accuracy.value:.4f} on {manifest.example_count} texts"),
        ("macro-F1", f"{manifest.macro_f1.value:.4f}"),
    ]


@facts.register
def _perplexity(manifest: PerplexityManifest) -> Facts:
    return [
        *_subject(manifest),
        ("perplexity", f"{manifest.perplexity.value:.4f} on {manifest.example_count} texts"),
        ("loss", f"{manifest.loss.value:.4f} nats on {manifest.token_count} tokens"),
    ]


@facts.register
def _benchmark(manifest: BenchmarkManifest) -> Facts:
    return [
        *_subject(manifest),
        ("benchmark", f"{manifest.benchmark}, {manifest.example_count} questions"),
        *((score.metric, f"{score.overall.value:.4f}") for score in manifest.scores),
    ]


def _subject(manifest: UpdateManifest | EvaluationManifest | PerplexityManifest | BenchmarkManifest) -> Facts:
    return [("plan", manifest.plan), ("state", f"{manifest.state} (round {manifest.round})")]


def _tensors(manifest: StateManifest | UpdateManifest) -> tuple[str, object]:
    size = format_bytes(sum(file.size_bytes for file in manifest.files))
    return "tensors", f"{len(manifest.tensors)}, {size}"
