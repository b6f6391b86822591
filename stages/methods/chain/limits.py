"""What a device's round allows, where foresight runs the layers: which of them train, how wide, how many at a time.

Memory does not limit the window there: a streamed step has one layer in memory, however many train.  So without limits
all layers train at once, which is full adapters.  `federation.round_passes` limits the layers, from the last down: each
takes a pass more backwards.  `federation.round_bytes` limits first the width of the adapters, which costs little
(docs/experiments.md), then the window.
"""

from dataclasses import dataclass

from schemas.errors import BadInput
from schemas.methods import ChainSettings
from schemas.methods.chain import StartReason
from schemas.settings import AdapterSettings
from stages.methods.server import Facts, over_limit


@dataclass(frozen=True)
class Allowed:
    """The first layer that trains and why, the width of adapters, and Q."""

    start: int
    reason: StartReason
    adapter: AdapterSettings
    window_size: int


def allowed(facts: Facts, chain: ChainSettings, foat: tuple[int, StartReason] | None) -> Allowed:
    """The widest window that a round allows, from the recipe's start or, where it is `auto`, the lowest allowed.

    `foat`: the start by FOAT and the reason, where the recipe asks for it.  Raises `BadInput` and `DoesNotFit`.
    """
    depth = facts.model.num_layers
    start, reason = _start(facts, chain, foat)
    if start >= depth:
        raise BadInput("no layer is left to train", values={"chain.start": start, "latest possible": depth - 1})
    most = depth if chain.max_window == "auto" else min(chain.max_window, depth)
    size = min(depth - start, most) if chain.window_size == "auto" else chain.window_size
    adapter = facts.width(size)
    if chain.window_size == "auto":
        size = min(size, layers_by_bytes(facts, adapter))
    check_size(size, depth)
    if chain.start == "last":
        start, reason = depth - size, "fixed"
    if chain.start != "auto":
        check_start(start, depth - size)
    return Allowed(min(start, depth - size), reason, adapter, size)


def check_size(size: int, depth: int) -> None:
    """The model has as many layers.  Raises `BadInput`."""
    if size > depth:
        raise BadInput("the window is larger than the model", values={"window_size": size, "layers": depth})


def check_start(start: int, last: int) -> None:
    """There is room for a window, which begins at the layer `last` at the latest.  Raises `BadInput`."""
    if start > last:
        raise BadInput("the start layer leaves no room for a window", values={"start": start, "latest possible": last})


def _start(facts: Facts, chain: ChainSettings, foat: tuple[int, StartReason] | None) -> tuple[int, StartReason]:
    if isinstance(chain.start, int):
        return chain.start, "fixed"
    if foat is not None:
        return foat
    limit, depth = facts.settings.federation.round_passes, facts.model.num_layers
    if limit == "none" or limit >= 2 * depth - 1:
        return 0, "every-layer"
    if limit < depth:
        raise over_limit("passes", limit, depth, what="training the last layer")
    return 2 * depth - 1 - limit, "round-passes"


def layers_by_bytes(facts: Facts, adapter: AdapterSettings) -> int:
    """How many layers' adapters a round may send."""
    limit, depth = facts.settings.federation.round_bytes, facts.model.num_layers
    if limit == "none":
        return depth
    found = max(count for count in range(depth + 1) if count == 0 or facts.bytes_up(count, adapter) <= limit)
    if found == 0:
        raise over_limit("bytes", limit, facts.bytes_up(1, adapter), what="sending one layer's adapter and the head")
    return found
