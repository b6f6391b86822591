"""Several runs beside each other: their scores in one figure for each way of counting, and a table of totals."""

from collections.abc import Sequence
from pathlib import Path

from schemas.errors import UsageProblem
from stages.report.parts import (
    Report,
    Section,
    Table,
    columns,
    mebibytes,
    score_interval,
    score_number,
    several,
    short,
)
from stages.report.recipe import to_toml
from stages.report.run_page import changed
from stages.report.scores import STYLES, score_figures, scored
from stages.run_view.view import RunView

MOST_RUNS = len(STYLES)

Named = tuple[str, RunView]


def comparison_report(runs: Sequence[Named]) -> Report:
    """The page of several runs."""
    notes = [f"{name}: {note}" for name, run in runs for note in run.notes()]
    return Report(
        title=f"{len(runs)} runs compared",
        summary=", ".join(name for name, _ in runs),
        notes=notes,
        warns=any(not run.signed or len(list(run.notes())) > 1 for _, run in runs),
        sections=[_score_section(runs), _total_section(runs), _settings_section(runs)],
    )


def check_count(count: int) -> None:
    """No more runs than there are lines that can be told apart.  Raises `UsageProblem`."""
    if count > MOST_RUNS:
        raise UsageProblem(
            "these are too many runs for one figure",
            values={"at most": MOST_RUNS, "given": count},
            hint="compare fewer at a time",
        )


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ; of the same folder twice, a number after it."""
    parts = [path.resolve().parts for path in paths]
    names: list[str] = []
    for one in parts:
        length = next(
            (size for size in range(1, len(one)) if sum(other[-size:] == one[-size:] for other in set(parts)) == 1), 1
        )
        name = "/".join(one[-length:])
        again = names.count(name)
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def _score_section(runs: Sequence[Named]) -> Section:
    """Runs with the same metric are drawn together."""
    figures = []
    for metric in ("accuracy", "perplexity"):
        of_metric = [(name, run) for name, run in runs if run.last is not None and run.last.metric == metric]
        figures += score_figures(of_metric) if of_metric else []
    data = {score.data for _, run in runs for _, score in scored(run)}
    paragraphs = ["Scores are on held-out texts."]
    if len(data) > 1:
        paragraphs.append(f"The runs were evaluated on {len(data)} different sets of texts: compare them with care.")
    return Section("scores", "What was learned", paragraphs, figures)


def _total_section(runs: Sequence[Named]) -> Section:
    """A column for each run."""
    rows = zip(TOTALS, *(_totals(run) for _, run in runs), strict=True)
    table = Table("Totals of each run", columns("", *(name for name, _ in runs), text=1), list(rows), folded=False)
    return Section("totals", "What it took", tables=[table])


TOTALS = (
    *("method", "score", "95 % interval", "devices", "rounds", "updates counted", "refused", "passes per text"),
    *("seconds on devices", "largest peak, MiB", "sent, MiB", "received, MiB"),
)


def _totals(run: RunView) -> list[str]:
    last, cost = run.last, run.cost
    return [
        run.plan.settings.chain.method,
        f"{last.metric} {score_number(last)}" if last else "",
        score_interval(last) if last else "",
        f"{run.plan.device_count:,}",
        f"{len(run.rounds):,}",
        f"{run.counted:,}",
        f"{run.refused:,}",
        f"{cost.per_text:.1f}" if cost.visits else "",
        f"{cost.seconds:,.1f}",
        mebibytes(cost.peak_bytes),
        mebibytes(cost.bytes_up),
        mebibytes(cost.bytes_down),
    ]


def _settings_section(runs: Sequence[Named]) -> Section:
    """Settings of which the runs have different values."""
    values = [{name: (value, default) for name, value, default in changed(run.plan.settings)} for _, run in runs]
    keys = sorted({key for found in values for key in found})
    rows = []
    for key in keys:
        default = next(found[key][1] for found in values if key in found)
        shown = [to_toml(found[key][0] if key in found else default)[:80] for found in values]
        if len(set(shown)) > 1:
            rows.append([key, *shown])
    heads = columns("setting", *(name for name, _ in runs), text=len(runs) + 1)
    made_of = Table(
        "What each run is made of",
        columns("run", "base model", "plan", "newest state", text=4),
        [[name, short(run.plan.model.digest), short(run.plan_digest), short(run.state)] for name, run in runs],
    )
    tables = [Table("Settings in which the runs differ", heads, rows, folded=False)] if rows else []
    paragraphs = [] if rows else ["The runs have the same settings."]
    paragraphs.append(f"Each of the {several(len(runs), 'run')} has a report of its own: 'chainctl report RUN'.")
    return Section("settings", "How they differ", paragraphs, tables=[*tables, made_of])
