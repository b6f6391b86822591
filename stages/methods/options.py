"""What else a plan could train, and what it would cost a device: for `plan --explain`.

Three families, by what the loss of a window runs: full adapters (a window of all layers), the exact chain (foresight
through the frozen layers), the paper's chain (through adapters alone); each with a few window sizes and widths.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from schemas.assignment import Assignment
from schemas.methods import ChainDecisions, ChainSettings
from schemas.plan import PlanManifest
from schemas.settings import REDUCTION_FACTORS, AdapterSettings, Settings
from stages.memory.predict import BASELINE_VARIES_BYTES, MemoryModel
from stages.methods.chain.server import METHOD, windows_of
from stages.methods.registry import device_method
from stages.methods.server import Costs
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.process.fork import run_in_fork
from stages.streaming.placement import SMALLEST


@dataclass(frozen=True)
class Option:
    """One way to train.  Sizes in bytes, of the round that costs most; `passes` of the cheapest and the dearest.

    `smallest_budget` and `read_per_step` are of a device with one layer in memory; `sent` by width of the adapters.
    """

    name: str
    window_size: int
    smallest_budget: int
    passes: tuple[int, int]
    read_per_step: int
    sent: dict[int, int]
    planned: bool = False


def options(plan: PlanManifest, backbone: Backbone) -> list[Option]:
    """The options beside a plan of the chain or of full adapters, and the plan itself.  Predicts in a fork."""
    return run_in_fork(lambda: list(_options(plan, backbone)))


def read_per_step(backbone: Backbone, settings: Settings, assignment: Assignment) -> int:
    """Bytes of frozen weights that a step on an assignment reads where one layer is in memory at a time.

    Layers forwards and backwards, the last one once; a lone layer stays.  A language head once a micro-batch, for each
    place where a loss is computed.
    """
    span = device_method(settings.chain.method).span(settings.chain, backbone.num_layers, assignment)
    sizes = [backbone.reader.layer_bytes(layer) for layer in span.layers]
    layers = 2 * sum(sizes) - sizes[-1] if len(sizes) > 1 else 0
    if settings.head_form != "language-model":
        return layers
    micro_batches = -(-settings.optimizer.batch_size // settings.numerics.rows)
    apart = span != assignment.span and isinstance(settings.chain, ChainSettings) and settings.chain.weights.local > 0
    return layers + LanguageHead.of(backbone).table.size * micro_batches * (2 if apart else 1)


def _options(plan: PlanManifest, backbone: Backbone) -> Iterator[Option]:
    """The plan's own first."""
    depth, start = plan.model.num_layers, plan.decisions.first_layer
    own = plan.settings.chain if isinstance(plan.settings.chain, ChainSettings) else _exact(depth)
    own = own.model_copy(update={"start": start})
    yield replace(_option(own, plan, backbone), planned=True)
    sizes = [size for size in (1 << power for power in range(depth.bit_length())) if size < depth][::-1]
    others = [_exact(size) for size in (depth, *sizes)]
    others += [_papers(start, size) for size in sizes if start + size <= depth]
    for chain in others:
        if (chain.exact, chain.start, chain.window_size) != (own.exact, own.start, own.window_size):
            yield _option(chain, plan, backbone)


def _exact(size: int) -> ChainSettings:
    return ChainSettings(start=0, window_size=size).settled()


def _papers(start: int, size: int) -> ChainSettings:
    return ChainSettings(foresight="adapters", start=start, window_size=size).settled()


def _option(chain: ChainSettings, plan: PlanManifest, backbone: Backbone) -> Option:
    """One option, with the plan's other settings."""
    start, size, depth = chain.start, chain.window_size, plan.model.num_layers
    assert isinstance(start, int)
    assert isinstance(size, int)
    windows = windows_of(chain, start, depth, size)
    decisions = ChainDecisions(
        first_layer=start, start_reason="fixed", start_range=(start, start), windows=windows, limited_by=None
    )
    settings = plan.settings.model_copy(update={"chain": chain})
    like = plan.model_copy(update={"settings": settings, "decisions": decisions})
    passes = [cost.passes for cost in _costs(like)]
    longest = Assignment.of(min(windows, key=lambda window: window.start))
    method = device_method(chain.method)
    peak = method.peak_bytes(
        MemoryModel(backbone, settings, plan.bottleneck, tokens=0), longest, SMALLEST, first_layer=start
    )
    return Option(
        name=_name(chain, depth),
        window_size=size,
        smallest_budget=peak + BASELINE_VARIES_BYTES,
        passes=(min(passes), max(passes)),
        read_per_step=read_per_step(backbone, settings, longest),
        sent={
            width: max(cost.bytes_up for cost in _costs(like.model_copy(update={"bottleneck": width})))
            for width in _widths(plan)
        },
    )


def _costs(plan: PlanManifest) -> list[Costs]:
    """Of each window."""
    return [METHOD.costs(plan, one) for one in plan.decisions.assignments(plan.model.num_layers)]


def _widths(plan: PlanManifest) -> list[int]:
    """Those that `auto` chooses from, and the plan's; widest first."""
    size = plan.model.hidden_size
    widths = {AdapterSettings(reduction_factor=factor).bottleneck(size) for factor in REDUCTION_FACTORS}
    return sorted(widths | {plan.bottleneck}, reverse=True)


def _name(chain: ChainSettings, depth: int) -> str:
    start = f" from layer {chain.start}" if chain.start else ""
    if not chain.exact:
        return f"the paper's chain{start}"
    assert isinstance(chain.start, int)
    if chain.window_size == depth - chain.start:
        return f"layers {chain.start} to {depth - 1} end to end" if start else "full adapters"
    return f"exact chain{start}"
