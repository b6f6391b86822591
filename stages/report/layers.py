"""Which layers were trained: how far each moves its texts, and what trained in which round."""

from collections.abc import Iterator, Sequence

from schemas.errors import some
from schemas.methods import ChainSettings
from schemas.plan import PlanManifest
from stages.report.charts import Plot, Point, Series, grid_plot, line_plot
from stages.report.parts import MOST_ROWS, Figure, Section, Table, columns, several
from stages.run_view.view import RoundView, RunView

CKA_BOUNDS = (-1.05, 1.05)


def layer_section(run: RunView) -> Section | None:
    """The curve and the schedule, as far as there are any."""
    figures = [figure for figure in (_curve(run.plan), _schedule(run)) if figure is not None]
    return Section("layers", "Which layers", figures=figures) if figures else None


def threshold(plan: PlanManifest) -> float | None:
    """T of FOAT, where it chose the start layer."""
    chain = plan.settings.chain
    return chain.cka_threshold if isinstance(chain, ChainSettings) and chain.start == "foat" else None


def _curve(plan: PlanManifest) -> Figure | None:
    if not plan.curve:
        return None
    start, limit = plan.decisions.first_layer, threshold(plan)
    points = [
        Point(layer, one.cka, f"layer {layer}: {one.cka:.3f} ({one.low:.3f} to {one.high:.3f})", one.low, one.high)
        for layer, one in enumerate(plan.curve)
    ]
    frozen, trained = points[: start + 1], points[start:]
    plot = line_plot(
        [Series("frozen", frozen, "c3"), Series("trained", trained, "c0")],
        x_label="layer",
        x_format=lambda value: f"{value:g}",
        y_format=lambda value: f"{value:.3g}",
        y_bounds=CKA_BOUNDS,
        rules=[] if limit is None else [(limit, f"T = {limit:g}")],
        whole=True,
    )
    adapters = f"Adapters from layer {start} on" if start < len(points) else "No layer has an adapter"
    chosen = "" if limit is None else f", the first below the threshold {limit:g}" if trained else ", none is below T"
    return Figure(
        key="cka",
        title="CKA by layer",
        text=f"How alike the output of each layer is to the reference, mean over devices. {adapters}{chosen}.",
        plot=plot,
        alt=f"CKA of {several(len(points), 'layer')}, from {points[0].y:.3f} at the first to {points[-1].y:.3f}.",
        table=Table(
            "CKA by layer, with 95 % intervals",
            columns("layer", "CKA", "low", "high"),
            [[f"{n}", f"{one.cka:.4f}", f"{one.low:.4f}", f"{one.high:.4f}"] for n, one in enumerate(plan.curve)],
        ),
        legend=(("c3", "frozen"), ("c0", "has an adapter")) if 0 < start < len(points) else (),
    )


def _schedule(run: RunView) -> Figure | None:
    if not run.rounds:
        return None
    unknown = sum(not line.known for line in run.rounds)
    by_device = sum(line.known and line.assignment is None for line in run.rounds)
    text = "A column for each round, a row for each layer, the first layer at the bottom."
    text += f" Of {several(unknown, 'round')} the state that was trained is not here." if unknown else ""
    text += f" In {several(by_device, 'round')} devices trained different layers." if by_device else ""
    kept = any(line.kept for line in run.rounds)
    return Figure(
        key="schedule",
        title="What trained in which round",
        text=text,
        plot=_grid(run),
        alt=f"Layers trained in each of {several(len(run.rounds), 'round')}: {_spoken(run.rounds)}.",
        table=Table(
            "What trained in which round",
            columns("round", "layers"),
            [[f"{line.number}", line.trained or "not known"] for line in run.rounds[-MOST_ROWS:]],
        ),
        legend=(("c0", "trained"), ("c1", "trained by too few: kept")) if kept else (),
    )


def _grid(run: RunView) -> Plot:
    depth = run.plan.model.num_layers
    return grid_plot(
        _cells(run.rounds, depth),
        columns=len(run.rounds),
        rows=depth,
        x_label="round",
        y_label="layer",
        first_column=run.rounds[0].number,
    )


def _cells(rounds: Sequence[RoundView], depth: int) -> Iterator[tuple[int, int, int, int, str]]:
    """Rectangles over rounds that follow each other and train the same."""
    column = 0
    while column < len(rounds):
        line = rounds[column]
        wide = 1
        while column + wide < len(rounds) and _alike(line, rounds[column + wide]):
            wide += 1
        if line.assignment is None:
            yield column, wide, 0, depth, "unknown"
        else:
            kept = set(line.kept)
            for style, layers in (
                ("c0", [layer for layer in line.assignment.layers if layer not in kept]),
                ("c1", [layer for layer in line.assignment.layers if layer in kept]),
            ):
                yield from ((column, wide, first, high, style) for first, high in _spans(layers))
        column += wide


def _alike(one: RoundView, other: RoundView) -> bool:
    return (one.assignment, one.kept) == (other.assignment, other.kept)


def _spans(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First layer and number of layers of each run without a gap."""
    first = 0
    for place in range(1, len(layers) + 1):
        if place == len(layers) or layers[place] != layers[place - 1] + 1:
            yield layers[first], place - first
            first = place


def _spoken(rounds: Sequence[RoundView]) -> str:
    distinct = list(dict.fromkeys(line.trained or "not known" for line in rounds))
    return f"layers {some(distinct)}"
