"""The chain: a window of Q layers trains in each round, with foresight through the layers behind it.

In the paper FOAT picks the start, DLCT slides the window, and GPO's foresight runs adapters alone.  Through layers the
gradient is the true one, and a window of all layers is full adapters.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.assignment import Assignment
from schemas.base import Many, Record
from schemas.errors import UsageProblem
from schemas.methods.registry import MethodDecisions, MethodProgress, MethodSettings
from schemas.refs import DeviceName, Loss, NonNegativeInt, PositiveInt, Window

Weight = Annotated[float, Field(ge=0)]
StartReason = Literal["below-threshold", "clamped", "no-layer-below-threshold", "fixed", "every-layer", "round-passes"]


class LossWeights(Record):
    """Eq. 2: w of the local loss, λ of the global one, and whether that runs frozen layers (else adapters alone)."""

    local: Weight = 1.0
    downstream: Weight = 0.0
    through_layers: bool = False


class ChainSettings(MethodSettings):
    """Which layers train in which round.

    `foresight`: what the global loss runs behind the window, adapters alone (the paper's) or the frozen layers too,
    which gives the true gradient at the cost of all layers; `auto` is layers, what measured best.  The other settings
    that are `auto` follow from it (`settled`) and from what a device's round may cost.  The paper's ablations, with
    adapters: `start = 0` is "w/o FOAT"; `window_size = 1` with `advance = "on-convergence"` is "w/o DLCT";
    `global_weight = 0.0` is "w/o GPO".
    """

    method: Literal["chain"] = "chain"
    foresight: Literal["auto", "adapters", "layers"] = "auto"
    # auto: foat with adapters, else the first layer that federation.round_passes allows; last: only the last window.
    start: Literal["auto", "foat", "last"] | NonNegativeInt = "auto"
    cka_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8  # [T]; the paper uses 0.9 for BERT-base
    # [Q] auto: with adapters the largest that fits the smallest device, else the widest that a round allows.
    window_size: Literal["auto"] | PositiveInt = "auto"
    # The most that Q = auto chooses; auto: max(2, num_layers // 4) with adapters, else no bound.
    max_window: Literal["auto"] | PositiveInt = "auto"
    advance: Literal["every-round", "on-convergence"] = "every-round"
    patience: PositiveInt = 3  # on-convergence: rounds without improvement before the window moves
    min_improvement: Annotated[float, Field(ge=0)] = 1e-3
    order: Literal["auto", "upwards", "downwards"] = "auto"  # of the windows; auto: upwards with adapters
    # Layers from a window to the next; window: Q, so that none overlap; auto: 1 with adapters, else window.
    stride: Literal["auto", "window"] | PositiveInt = "auto"
    local_weight: Literal["auto"] | Weight = "auto"  # of the local loss; auto: 1 with adapters, 0 with layers
    # [λ] auto: 0.2 with adapters (the paper uses 0.1 for BERT-base), 1 with layers.
    global_weight: Literal["auto"] | Weight = "auto"

    @model_validator(mode="after")
    def _something_is_in_the_loss(self) -> "ChainSettings":
        if self.weights.local == self.weights.downstream == 0:
            raise ValueError("local_weight and global_weight are both 0, so windows before the last would not train")
        return self

    @property
    def weights(self) -> "LossWeights":
        """The weights of Eq. 2, `auto` resolved."""
        local = self.local_weight if self.local_weight != "auto" else 0.0 if self.exact else 1.0
        downstream = self.global_weight if self.global_weight != "auto" else 1.0 if self.exact else 0.2
        return LossWeights(local=local, downstream=downstream, through_layers=self.exact)

    @property
    def exact(self) -> bool:
        """Whether the gradient is that of end-to-end training: foresight runs the layers."""
        return self.foresight != "adapters"

    def settled(self) -> "ChainSettings":
        """With what the foresight decides; Q and, through layers, the start are left to the plan."""
        weights, exact = self.weights, self.exact
        follows: dict[str, object] = {
            "foresight": "layers" if exact else "adapters",
            "start": self.start if exact else "foat",
            "order": "downwards" if exact else "upwards",
            "stride": "window" if exact else 1,
            "local_weight": weights.local,
            "global_weight": weights.downstream,
        }
        return self.model_copy(update={name: value for name, value in follows.items() if getattr(self, name) == "auto"})

    @property
    def decided(self) -> bool:
        """Whether nothing is `auto` but the bound of Q."""
        return "auto" not in self.model_copy(update={"max_window": 1}).model_dump().values()

    def freezes(self, layer: int, cka: float) -> bool:
        """Below a fixed start layer, or at least as similar as T."""
        start = self.settled().start
        if isinstance(start, int):
            return layer < start
        return start == "foat" and cka >= self.cka_threshold


class ChainDecisions(MethodDecisions):
    """The start layer (`first_layer`), the reason for it, and the windows."""

    method: Literal["chain"] = "chain"
    start_reason: StartReason
    start_range: tuple[NonNegativeInt, NonNegativeInt]  # earliest and latest start that the curve's intervals allow
    windows: Many[Window]
    limited_by: DeviceName | None  # the device whose budget limits Q

    def assignments(self, num_layers: int) -> tuple[Assignment, ...]:  # noqa: ARG002 -- windows know their layers
        """One assignment per window."""
        return tuple(Assignment.of(window) for window in self.windows)

    def check(self, num_layers: int) -> None:
        """Check that windows hold every layer from the start layer on, and no other.  Raises `ValueError`."""
        super().check(num_layers)
        edges = [(window.start, window.stop) for window in self.windows]
        if len(set(edges)) != len(edges):
            raise ValueError("a window is listed twice")
        if any(start < self.first_layer or stop > num_layers for start, stop in edges):
            raise ValueError("windows must lie between the start layer and the last layer")
        covered = {layer for window in self.windows for layer in window.layers}
        head_only = edges == [(num_layers, num_layers)] and self.first_layer == num_layers
        if covered != set(range(self.first_layer, num_layers)) or not (covered or head_only):
            raise ValueError("windows must hold every layer from the start layer on")


class Convergence(Record):
    """The best loss of a window, and the rounds since it improved (used only if windows advance on convergence)."""

    best_loss: Loss | None = None
    stale_rounds: NonNegativeInt = 0


class ChainProgress(MethodProgress):
    """The window of the round, by index."""

    method: Literal["chain"] = "chain"
    window_index: NonNegativeInt = 0
    convergence: Convergence = Convergence()


def ablated(settings: MethodSettings, *, dlct: bool, gpo: bool, foat: bool) -> MethodSettings:
    """The paper's chain without the parts that are False, as in its ablations.  Raises `UsageProblem`."""
    if dlct and gpo and foat:
        return settings
    if not isinstance(settings, ChainSettings):
        raise UsageProblem(
            "ablations remove parts of the chain, and this is another method",
            values={"expected": 'chain.method = "chain"', "found": settings.method},
            hint="leave out --no-dlct, --no-gpo and --no-foat",
        )
    if settings.foresight == "layers":
        raise UsageProblem(
            "ablations remove parts of the paper's chain",
            values={"expected": 'chain.foresight = "adapters" or "auto"', "found": settings.foresight},
            hint="leave out --no-dlct, --no-gpo and --no-foat",
        )
    changes: dict[str, object] = {"foresight": "adapters"}
    if not dlct:
        changes |= {"window_size": 1, "stride": 1, "advance": "on-convergence"}
    if not gpo:
        changes |= {"global_weight": 0.0, "local_weight": 1.0}
    if not foat:
        changes["start"] = 0
    return settings.model_copy(update=changes)
