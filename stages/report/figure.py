"""Two curves as an SVG: CKA by layer, and accuracy by round.  The same inputs give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schemas.errors import BadInput
from schemas.profile import LayerSimilarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, QUIET = "#24292f", "#8c959f"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito: distinguishable for colour-blind readers
STYLE: dict[str, Any] = {
    "svg.hashsalt": "chainctl",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curves_svg(
    curve: Sequence[LayerSimilarity],
    *,
    accuracy: Mapping[str, Sequence[float]],
    threshold: float | None = None,
    start_layer: int | None = None,
) -> bytes:
    """SVG bytes.  `accuracy` holds one series per method, from round 0 on, in [0, 1].

    `threshold` and `start_layer`: of FOAT, where it chose the start.

    Raises `BadInput` where matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("figures need matplotlib", hint="pip install 'chainctl[report]'") from None
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_similarity(left, curve, threshold, start_layer)
        _draw_accuracy(right, accuracy)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw_similarity(
    axes: "Axes", curve: Sequence[LayerSimilarity], threshold: float | None, start_layer: int | None
) -> None:
    layers = list(range(len(curve)))
    axes.set_title("How far each layer moves from the embeddings", loc="left", fontsize=11)
    axes.fill_between(
        layers,
        [point.low for point in curve],
        [point.high for point in curve],
        color=COLOURS[0],
        alpha=0.15,
        linewidth=0,
    )
    axes.plot(layers, [point.cka for point in curve], color=COLOURS[0], marker="o", markersize=4)
    if threshold is not None:
        axes.axhline(threshold, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"T = {threshold:g}", (layers[-1], threshold), (0, 4), textcoords="offset points", ha="right", color=QUIET
        )
    if start_layer is not None and start_layer < len(curve):
        axes.annotate(
            "chain starts here",
            (start_layer, curve[start_layer].cka),
            (14, 22),
            textcoords="offset points",
            color=COLOURS[1],
            arrowprops={"arrowstyle": "->", "color": COLOURS[1]},
        )
    axes.set_xlabel("layer")
    axes.set_ylabel("CKA")
    axes.set_xticks(layers)
    axes.set_ylim(top=1.02)


def _draw_accuracy(axes: "Axes", accuracy: Mapping[str, Sequence[float]]) -> None:
    axes.set_title("Accuracy on held-out texts", loc="left", fontsize=11)
    last = max(len(series) for series in accuracy.values()) - 1
    labels = sorted(accuracy.items(), key=lambda item: item[1][-1])
    for colour, (name, series) in zip(COLOURS, accuracy.items(), strict=False):
        axes.plot(range(len(series)), series, color=colour)
        # Labels at the lines' ends, the lower one below and the higher one above, so that they never overlap.
        offset = 8 if labels[-1][0] == name else -14
        text = f"{name} {series[-1]:.1%}"
        axes.annotate(text, (last, series[-1]), (0, offset), textcoords="offset points", ha="right", color=colour)
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
