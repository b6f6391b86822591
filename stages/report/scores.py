"""The score of runs over rounds and over what they cost: the same figures for one run and for several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.measured import Cost
from stages.report.charts import Format, Point, Series, line_plot
from stages.report.parts import Figure, Table, columns, compact, percent, score_interval, score_number
from stages.run_view.view import RunView, Score

STYLES = ("c0", "c1", "c2", "c3", "c0 dashed", "c1 dashed", "c2 dashed", "c3 dashed")
LARGEST_PERPLEXITY = 1e300  # that is drawn: what diverged may say any number
MOST_BANDS = 2  # runs whose intervals are drawn: more hide each other


@dataclass(frozen=True)
class Spending:
    """A way to count what a run has spent."""

    key: str
    title: str
    axis: str
    of: Callable[[Cost], float] | None  # None: counts rounds, which cost nothing in themselves


SPENDINGS = (
    Spending("rounds", "by rounds", "round", None),
    Spending("passes", "by layer passes", "passes of a text through a layer, all devices", lambda cost: cost.passes),
    Spending("seconds", "by seconds", "seconds on devices, all together", lambda cost: cost.seconds),
    Spending(
        "megabytes",
        "by bytes sent and received",
        "MiB sent and received, all devices",
        lambda cost: (cost.bytes_up + cost.bytes_down) / 2**20,
    ),
)


def spent_by_round(run: RunView, spending: Spending) -> list[float]:
    """What was spent before the first round and after each; ends where a round's costs are not known."""
    spent = [0.0]
    for line in run.rounds:
        if spending.of is None:
            spent.append(float(line.number))
        elif line.cost is None or (line.accepted and not line.cost.updates):
            break
        else:
            spent.append(spent[-1] + spending.of(line.cost))
    return spent


def scored(run: RunView) -> list[tuple[int, Score]]:
    """Every score that the run is compared by, with the number of rounds before it."""
    first = [(0, run.before)] if run.before else []
    return first + [(number, line.score) for number, line in enumerate(run.rounds, 1) if line.score]


def score_figures(runs: Sequence[tuple[str, RunView]]) -> list[Figure]:
    """A figure for each way of counting, as far as there is anything to draw.  All runs have the same metric."""
    found = [_figure(runs, spending) for spending in SPENDINGS]
    return [figure for figure in found if figure is not None]


def _figure(runs: Sequence[tuple[str, RunView]], spending: Spending) -> Figure | None:
    several = len(runs) > 1
    series = [
        Series(name, _points(name if several else "", run, spending, intervals=len(runs) <= MOST_BANDS), style)
        for (name, run), style in zip(runs, STYLES, strict=False)
    ]
    series = [one for one in series if len(one.points) > 1]
    if not series or all(point.x == 0 for one in series for point in one.points):
        return None
    metric = next(score.metric for _, run in runs for _, score in scored(run))
    accuracy = metric == "accuracy"
    y_format: Format = (lambda value: f"{100 * value:.3g} %") if accuracy else compact
    plot = line_plot(
        series,
        x_label=spending.axis,
        x_format=compact,
        y_format=y_format,
        y_bounds=(0.0, 1.0) if accuracy else (0.0, LARGEST_PERPLEXITY),
        may_be_log=not accuracy,
        named=several,
        whole=spending.of is None,
    )
    name = metric.capitalize()
    ends = "; ".join(_ends(one, several=several, accuracy=accuracy) for one in series)
    return Figure(
        key=f"score-{spending.key}",
        title=f"{name} {spending.title}",
        text="",
        plot=plot,
        alt=f"{name} on held-out texts {spending.title}. {ends}.",
        table=_table(runs, spending, name),
    )


def _points(name: str, run: RunView, spending: Spending, *, intervals: bool) -> list[Point]:
    spent = spent_by_round(run, spending)
    prefix = f"{name}, " if name else ""
    return [
        Point(
            spent[number],
            score.value,
            f"{prefix}round {number}: {score_number(score)} ({score_interval(score)})"
            + (f" at {compact(spent[number])}" if spending.of else ""),
            score.low if intervals else None,
            score.high if intervals else None,
        )
        for number, score in scored(run)
        if number < len(spent)
    ]


def _ends(one: Series, *, several: bool, accuracy: bool) -> str:
    first, last = (percent(point.y) if accuracy else f"{point.y:.4g}" for point in (one.points[0], one.points[-1]))
    return f"{one.name}: from {first} to {last}" if several else f"From {first} to {last}"


def _table(runs: Sequence[tuple[str, RunView]], spending: Spending, metric: str) -> Table:
    spends = spending.of is not None
    heads = [
        *(["run"] if len(runs) > 1 else []),
        "round",
        *([spending.axis] if spends else []),
        metric,
        "95 % interval",
    ]
    rows: list[list[str]] = []
    for name, run in runs:
        spent = spent_by_round(run, spending)
        for number, score in scored(run):
            if number < len(spent):
                cells = [str(number), *([f"{spent[number]:,.5g}"] if spends else [])]
                row = [*cells, score_number(score), score_interval(score)]
                rows.append([name, *row] if len(runs) > 1 else row)
    return Table(f"{metric} {spending.title}", columns(*heads, text=int(len(runs) > 1)), rows)
