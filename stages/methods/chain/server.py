"""The chain's decisions: the start layer (FOAT), the next window (DLCT), and Q from the memory budgets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from schemas.assignment import Assignment
from schemas.errors import BadInput
from schemas.methods import ChainDecisions, ChainProgress, ChainSettings, Convergence
from schemas.methods.chain import StartReason
from schemas.plan import PlanManifest
from schemas.profile import LayerSimilarity
from schemas.refs import Window
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.methods.chain.limits import allowed, check_size, check_start, layers_by_bytes
from stages.methods.server import Costs, Decided, Facts, Next, ServerMethod, does_not_fit, fitting_micro_batch

REASONS: dict[StartReason, str] = {
    "every-layer": "every layer trains, no limit on a round's passes asks for fewer",
    "round-passes": "a round may take {passes} passes of a text, so the layers before {start} stay as they are",
    "below-threshold": "layer {start} is the first whose CKA falls below T = {threshold}",
    "clamped": "CKA falls below T = {threshold} only after layer {start}, the last one with room for a window",
    "no-layer-below-threshold": "no CKA falls below T = {threshold}; layer {start} is the last with room for a window",
    "fixed": "the recipe says so (no FOAT)",
}
STREAMED_WINDOW = 2  # the widest window that `auto` chooses if its layers must be streamed one at a time
EARLY_WINDOWS = (
    "Warning: windows before the last one apply the language head to intermediate layers. Language models got worse "
    'with them; chain.foresight = "layers" has the true gradient (docs/experiments.md, What a round buys).'
)


@dataclass(frozen=True)
class Chain(ServerMethod):
    """The chain of ChainFed, §4, Eq. 2 to 4."""

    name = "chain"

    def decide(self, facts: Facts) -> Decided:
        """Q and the micro-batch from memory, the start from FOAT.  Raises `BadInput` and `DoesNotFit`."""
        chain, depth = settings_of(facts), facts.model.num_layers
        if chain.exact:
            return decide_by_limits(facts)
        size, micro_batch, limited_by = choose_window_size(facts)
        start, reason, start_range = choose_start(
            chain, depth, facts.curve, size, facts.settings.similarity.min_examples
        )
        decisions = ChainDecisions(
            first_layer=start,
            start_reason=reason,
            start_range=start_range,
            windows=windows_of(chain, start, depth, size),
            limited_by=limited_by,
        )
        return Decided(chain.model_copy(update={"window_size": size}), decisions, facts.width(size), micro_batch)

    def first(self, plan: PlanManifest) -> Next:
        """The first window."""
        return Next(Assignment.of(decisions_of(plan).windows[0]), ChainProgress())

    def next(
        self,
        plan: PlanManifest,
        parent: StateManifest,
        accepted: Sequence[UpdateManifest],
        train_loss: float,
    ) -> Next:
        """The following window, or the same one if it has not converged."""
        progress = parent.progress
        assert isinstance(progress, ChainProgress)
        following = advance(plan, progress, median_loss(accepted))
        return Next(Assignment.of(decisions_of(plan).windows[following.window_index]), following)

    def may_train(self, assigned: Assignment, trained: Assignment) -> bool:
        """The round's window or its last layers, so that the head is applied to the output of the same layer."""
        count = len(trained.layers)
        return not trained.extra and 0 < count <= len(assigned.layers) and trained.layers == assigned.layers[-count:]

    def narrowed(self, assigned: Assignment, layers: int) -> Assignment | None:
        """The last `layers` layers of the window."""
        return Assignment(layers=assigned.layers[-layers:]) if 0 < layers <= len(assigned.layers) else None

    def costs(self, plan: PlanManifest, assignment: Assignment) -> Costs:
        """With foresight through layers every layer is passed, and those behind the window's first backwards too."""
        costs, depth = super().costs(plan, assignment), plan.model.num_layers
        chain = plan.settings.chain
        assert isinstance(chain, ChainSettings)
        if not chain.weights.through_layers or assignment.span is None:
            return costs
        return replace(costs, forward_passes=depth, backward_passes=depth - assignment.span.start - 1)

    def explain(self, plan: PlanManifest) -> list[str]:
        """The start layer and the reason for it, its uncertainty, Q, and the device that limits Q."""
        decisions, chain = decisions_of(plan), plan.settings.chain
        assert isinstance(chain, ChainSettings)
        start = decisions.first_layer
        limits = plan.settings.federation
        reason = REASONS[decisions.start_reason].format(
            start=start, threshold=chain.cka_threshold, passes=limits.round_passes
        )
        lines = [f"Start layer {start}: {reason}."]
        earliest, latest = decisions.start_range
        if decisions.start_reason not in ("fixed", "every-layer", "round-passes"):
            allowed = "no other start layer" if earliest == latest else f"start layers {earliest} to {latest}"
            lines.append(f"Uncertainty: the curve's intervals allow {allowed}.")
        return [*lines, f"Window size Q = {chain.window_size}: {_window_reason(plan, chain, decisions)}."]

    def warnings(self, plan: PlanManifest) -> list[str]:
        """A warning if the language head is applied to intermediate layers."""
        chain = plan.settings.chain
        assert isinstance(chain, ChainSettings)
        first = min(window.stop for window in decisions_of(plan).windows)
        early = first < plan.model.num_layers and chain.weights.local > 0
        return [EARLY_WINDOWS] if early and plan.settings.task.kind == "causal-lm" else []


METHOD = Chain()


def _window_reason(plan: PlanManifest, chain: ChainSettings, decisions: ChainDecisions) -> str:
    if chain.exact:
        trained, bottleneck = plan.model.num_layers - decisions.first_layer, plan.bottleneck
        if chain.window_size == trained:
            everything = "every layer, which is full adapters" if decisions.first_layer == 0 else "all that train"
            return f"{everything}, adapters of width {bottleneck}, the true gradient"
        gradient = "with a local loss" if chain.weights.local > 0 else "the true gradient"
        return f"of {trained} layers that train, adapters of width {bottleneck}, {gradient}"
    device = decisions.limited_by
    return f"device {device} allows no more" if device else "no device's budget limits it"


def settings_of(facts: Facts) -> ChainSettings:
    """The recipe's chain settings, with what follows from the foresight."""
    chain = facts.settings.chain
    assert isinstance(chain, ChainSettings)
    return chain.settled()


def decide_by_limits(facts: Facts) -> Decided:
    """Foresight through layers: what a round's passes and bytes allow.  Raises `BadInput` and `DoesNotFit`."""
    chain, depth = settings_of(facts), facts.model.num_layers
    foat = None
    if chain.start == "foat":
        size = 1 if chain.window_size == "auto" else chain.window_size
        foat = choose_start(chain, depth, facts.curve, size, facts.settings.similarity.min_examples)
    one = allowed(facts, chain, foat[:2] if foat else None)
    decisions = ChainDecisions(
        first_layer=one.start,
        start_reason=one.reason,
        start_range=foat[2] if foat else (one.start, one.start),
        windows=windows_of(chain, one.start, depth, one.window_size),
        limited_by=None,
    )
    lowest = Assignment.of(min(decisions.windows, key=lambda window: window.start))
    micro_batch = fitting_micro_batch(facts, lowest, decisions, one.adapter)
    start = one.start if chain.start == "auto" else chain.start
    decided = chain.model_copy(update={"window_size": one.window_size, "start": start})
    return Decided(decided, decisions, one.adapter, micro_batch)


def decisions_of(plan: PlanManifest) -> ChainDecisions:
    """The plan's chain decisions."""
    assert isinstance(plan.decisions, ChainDecisions)
    return plan.decisions


def choose_window_size(facts: Facts) -> tuple[int, int, str | None]:
    """Q, the micro-batch, and the device that limits them.

    Fixed values are kept.  Where they are `auto`: the largest Q up to `max_window` that fits the smallest budget with
    some micro-batch, and the largest micro-batch that fits with it; no larger than a round may send with the narrowest
    adapters.  Raises `BadInput` and `DoesNotFit`.
    """
    chain, depth, smallest = settings_of(facts), facts.model.num_layers, facts.smallest
    hidden_size = facts.model.hidden_size
    most = max(2, depth // 4) if chain.max_window == "auto" else chain.max_window
    if chain.window_size == "auto":
        narrowest = facts.settings.adapter.choices(facts.settings.task.kind)[-1]
        sizes = list(range(min(most, depth, layers_by_bytes(facts, narrowest)), 0, -1))
    else:
        sizes = [chain.window_size]
    check_size(max(sizes), depth)
    peaks: list[int] = []
    for size in sizes:
        for micro_batch in facts.micro_batches:
            streamed = chain.window_size != "auto" or size <= STREAMED_WINDOW
            first, bottleneck = Assignment(layers=tuple(range(size))), facts.width(size).bottleneck(hidden_size)
            peaks.append(facts.predict_peak(first, 0, micro_batch, bottleneck=bottleneck, streamed=streamed))
            if peaks[-1] <= smallest.memory_budget_bytes:
                return size, micro_batch, (smallest.device if len(peaks) > 1 else None)
    raise does_not_fit(smallest, min(peaks), what="even the smallest window")


def windows_of(chain: ChainSettings, start: int, depth: int, size: int) -> tuple[Window, ...]:
    """The windows in the order of their rounds: from `start` up, or from the last layer down.

    The last one of a cycle is moved back where a stride would carry it past the end.  Raises `BadInput` for a stride
    that skips layers.
    """
    chain = chain.settled()
    stride = chain.stride if isinstance(chain.stride, int) else size
    if stride > size:
        raise BadInput(
            "the stride is longer than the window, so layers would be skipped",
            values={"chain.stride": stride, "window size": size},
            hint="set chain.stride to at most the window size, or raise chain.window_size",
        )
    last = depth - size
    steps = range(0, last - start + stride, stride)
    upwards = chain.order == "upwards"
    firsts = [min(start + step, last) if upwards else max(last - step, start) for step in steps]
    return tuple(Window(start=first, stop=first + size) for first in firsts)


def choose_start(
    chain: ChainSettings, depth: int, curve: Sequence[LayerSimilarity], size: int, min_examples: int
) -> tuple[int, StartReason, tuple[int, int]]:
    """FOAT: the first layer whose mean CKA is below T, at most L - Q; and the range that the intervals allow.

    Raises `BadInput` if the curve is empty or the start leaves no room for a window of `size` layers.
    """
    last, chain = depth - size, chain.settled()
    if chain.start != "foat":
        assert chain.start != "auto"
        fixed = last if chain.start == "last" else chain.start
        check_start(fixed, last)
        return fixed, "fixed", (fixed, fixed)
    if not curve:
        raise BadInput(
            "no device has enough texts that differ for a CKA curve, so FOAT cannot choose the start layer",
            values={"min_examples": min_examples},
            hint="lower similarity.min_examples, or fix the start with chain.start",
        )

    def first_below(values: Sequence[float]) -> int:
        return next((layer for layer, value in enumerate(values) if value < chain.cka_threshold), depth)

    found = first_below([layer.cka for layer in curve])
    earliest = first_below([layer.low for layer in curve])
    latest = first_below([layer.high for layer in curve])
    reason: StartReason = "below-threshold"
    if found == depth:
        reason = "no-layer-below-threshold"
    elif found > last:
        reason = "clamped"
    return min(found, last), reason, (min(earliest, last), min(latest, last))


def median_loss(accepted: Sequence[UpdateManifest]) -> float:
    """The updates' median loss, weighted by example counts; of two in the middle the smaller.

    As long as liars have less than half of the texts, it lies between two honest losses.
    """
    losses, weights = zip(*((update.loss.mean, update.example_count) for update in accepted), strict=True)
    return float(np.quantile(losses, 0.5, weights=weights, method="inverted_cdf"))


def advance(plan: PlanManifest, progress: ChainProgress, loss: float) -> ChainProgress:
    """The next round's window, and its convergence counter.

    `every-round` moves to the next window, cyclically (DLCT).  `on-convergence` stays until the loss has improved by
    less than `min_improvement` for `patience` rounds (the plain chain of §4.1).
    """
    chain = plan.settings.chain
    assert isinstance(chain, ChainSettings)
    following = (progress.window_index + 1) % len(decisions_of(plan).windows)
    if chain.advance == "every-round":
        return ChainProgress(window_index=following)
    best = progress.convergence.best_loss
    if best is None or best - loss > chain.min_improvement:
        return progress.model_copy(update={"convergence": Convergence(best_loss=loss)})
    stale = progress.convergence.stale_rounds + 1
    if stale >= chain.patience:
        return ChainProgress(window_index=following)
    return progress.model_copy(update={"convergence": Convergence(best_loss=best, stale_rounds=stale)})
