"""The chain of the paper: FOAT picks the start, DLCT slides a window of Q layers, GPO adds foresight."""

import itertools
from typing import Annotated, Literal

from pydantic import Field

from schemas.assignment import Assignment
from schemas.base import Many, Record
from schemas.errors import UsageProblem
from schemas.methods.registry import MethodDecisions, MethodProgress, MethodSettings
from schemas.refs import DeviceName, NonNegativeInt, PositiveInt, Window

StartReason = Literal["below-threshold", "clamped", "no-layer-below-threshold", "fixed"]


class ChainSettings(MethodSettings):
    """Which layers train in which round.

    `start = 0` is "w/o FOAT"; `window_size = 1` with `advance = "on-convergence"` is "w/o DLCT";
    `global_weight = 0.0` is "w/o GPO".
    """

    method: Literal["chain"] = "chain"
    start: Literal["foat", "last"] | NonNegativeInt = "foat"  # last: only the last window
    cka_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8  # [T]; the paper uses 0.9 for BERT-base
    window_size: Literal["auto"] | PositiveInt = "auto"  # [Q]; auto: the largest that fits the smallest device
    max_window: Literal["auto"] | PositiveInt = "auto"  # the most that Q = auto chooses; auto: max(2, num_layers // 4)
    advance: Literal["every-round", "on-convergence"] = "every-round"
    patience: PositiveInt = 3  # on-convergence: rounds without improvement before the window moves
    min_improvement: Annotated[float, Field(ge=0)] = 1e-3
    global_weight: Annotated[float, Field(ge=0)] = 0.2  # [λ]; the paper uses 0.1 for BERT-base

    @property
    def decided(self) -> bool:
        """Whether Q is a number."""
        return self.window_size != "auto"

    def freezes(self, layer: int, cka: float) -> bool:
        """Below a fixed start layer, or at least as similar as T."""
        if isinstance(self.start, int):
            return layer < self.start
        return self.start == "foat" and cka >= self.cka_threshold


class ChainDecisions(MethodDecisions):
    """The start layer (`first_layer`), the reason for it, and the windows."""

    method: Literal["chain"] = "chain"
    start_reason: StartReason
    start_range: tuple[int, int]  # earliest and latest start that the curve's intervals allow
    windows: Many[Window]
    limited_by: DeviceName | None  # the device whose budget limits Q

    def assignments(self, num_layers: int) -> tuple[Assignment, ...]:  # noqa: ARG002 -- windows know their layers
        """One assignment per window."""
        return tuple(Assignment.of(window) for window in self.windows)

    def check(self, num_layers: int) -> None:
        """Check that windows move forward, skip no layer and end at the last layer.  Raises `ValueError`."""
        super().check(num_layers)
        edges = [(window.start, window.stop) for window in self.windows]
        forward = all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(edges))
        if not edges or not forward or edges[-1][1] != num_layers:
            raise ValueError("windows must move forward, and the last one must end at the last layer")
        if edges[0][0] != self.first_layer:
            raise ValueError("the first window must begin at the start layer")
        if any(later[0] > earlier[1] for earlier, later in itertools.pairwise(edges)):
            raise ValueError("windows must not skip a layer")


class Convergence(Record):
    """The best loss of a window, and the rounds since it improved (used only if windows advance on convergence)."""

    best_loss: float | None = None
    stale_rounds: NonNegativeInt = 0


class ChainProgress(MethodProgress):
    """The window of the round, by index."""

    method: Literal["chain"] = "chain"
    window_index: NonNegativeInt = 0
    convergence: Convergence = Convergence()


def ablated(settings: MethodSettings, *, dlct: bool, gpo: bool, foat: bool) -> MethodSettings:
    """The chain without the parts that are False, as in the paper's ablations.  Raises `UsageProblem`."""
    if dlct and gpo and foat:
        return settings
    if not isinstance(settings, ChainSettings):
        raise UsageProblem(
            "ablations remove parts of the chain, and this is another method",
            values={"expected": 'chain.method = "chain"', "found": settings.method},
            hint="leave out --no-dlct, --no-gpo and --no-foat",
        )
    changes: dict[str, object] = {}
    if not dlct:
        changes |= {"window_size": 1, "advance": "on-convergence"}
    if not gpo:
        changes["global_weight"] = 0.0
    if not foat:
        changes["start"] = 0
    return settings.model_copy(update=changes)
