"""The report of one run."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from schemas.errors import some
from schemas.methods import default_settings
from schemas.settings import Settings
from stages.report.charts import Point, Series, line_plot
from stages.report.devices import device_sections
from stages.report.layers import layer_section
from stages.report.parts import (
    MOST_ROWS,
    Code,
    Column,
    Figure,
    Headline,
    Report,
    Section,
    Table,
    columns,
    compact,
    duration,
    mebibytes,
    score_interval,
    score_number,
    several,
)
from stages.report.recipe import to_toml, write_recipe
from stages.report.scores import score_figures
from stages.report.tables import format_bytes
from stages.run_view.view import RoundView, RunView

MOST_LABELS = 200  # that settings are shown with
LONGEST_VALUE = 160  # characters of a setting in a table


def run_report(run: RunView) -> Report:
    """Everything that a run's artifacts tell."""
    return Report(
        title=run.name,
        summary=summary(run),
        notes=sentences(run),
        warns=not run.signed or len(list(run.notes())) > 1,
        headlines=headlines(run),
        sections=[
            section
            for section in (
                _score_section(run),
                layer_section(run),
                *device_sections(run),
                _round_section(run),
                _settings_section(run),
                _lineage_section(run),
                _again_section(run),
            )
            if section is not None
        ],
    )


def sentences(run: RunView) -> list[str]:
    """The notes, each beginning with a capital letter."""
    return [note[:1].upper() + note[1:] for note in run.notes()]


def summary(run: RunView) -> str:
    """The run in a sentence."""
    plan = run.plan
    kind = "a simulated federation" if run.federation else "a federation"
    rounds = several(len(run.rounds), "round")
    return (
        f"{kind.capitalize()} of {several(plan.device_count, 'device')} with {plan.example_count:,} texts, {rounds}. "
        f"Method {plan.settings.chain.method} on a {plan.model.model_type} of {plan.model.num_layers} layers; "
        f"{_task(plan.settings)}."
    )


def _task(settings: Settings) -> str:
    labels = settings.task.labels
    if not labels:
        return "the task is language modelling"
    return f"the task is classification with {several(len(labels), 'label')}: {some(labels)}"


def headlines(run: RunView) -> list[Headline]:
    """The numbers that a reader looks for first."""
    found: list[Headline] = []
    last, cost = run.last, run.cost
    if last is not None:
        before = f"from {score_number(run.before)}; " if run.before and run.before is not last else ""
        found.append(
            Headline(
                last.metric,
                score_number(last),
                f"{before}95\u00a0% interval {score_interval(last)}, {last.texts} texts",
            )
        )
    took_part = len({name for line in run.rounds for name in line.accepted})
    found.append(
        Headline(
            "updates counted",
            f"{run.counted:,}",
            f"of {several(took_part, 'device')}; {several(run.refused, 'refused', 'refused')}",
        )
    )
    if cost.updates:
        predicted = [line.predicted_peak_bytes for line in run.rounds if line.predicted_peak_bytes]
        foretold = f"largest predicted {format_bytes(max(predicted))}" if predicted else ""
        found += [
            Headline("largest peak memory", format_bytes(cost.peak_bytes), foretold),
            Headline("sent", format_bytes(cost.bytes_up), f"received {format_bytes(cost.bytes_down)}"),
            Headline("layer passes", compact(cost.passes), f"{cost.per_text:.1f} for each text and step"),
            Headline(
                "time on devices", duration(cost.seconds), f"{duration(cost.seconds / cost.updates)} for an update"
            ),
        ]
    return found


def _score_section(run: RunView) -> Section | None:
    figures = score_figures([(run.name, run)])
    loss = _loss_figure(run)
    if not figures and loss is None:
        return None
    known = [line for line in run.rounds if line.cost is not None]
    paragraphs = []
    if figures:
        paragraphs.append("Scores are on held-out texts; bands are 95\u00a0% intervals.")
    measured, counted = run.cost.updates, sum(len(line.accepted) for line in run.rounds)
    if len(known) < len(run.rounds) or measured < counted:
        paragraphs.append(f"{measured:,} of {counted:,} updates came with a measurement; others cost nothing here.")
    return Section("scores", "What was learned", paragraphs, [*figures, *([loss] if loss else [])])


def _loss_figure(run: RunView) -> Figure | None:
    lines = [line for line in run.rounds if line.train_loss is not None]
    if len(lines) < 2:
        return None
    points = [
        Point(line.number, line.train_loss, f"round {line.number}: {line.train_loss:.4f}")
        for line in lines
        if line.train_loss is not None
    ]
    return Figure(
        key="loss",
        title="Training loss by rounds",
        text="",
        plot=line_plot(
            [Series("loss", points, "c2")],
            x_label="round",
            x_format=compact,
            y_format=compact,
            may_be_log=True,
            whole=True,
        ),
        alt=f"Mean training loss of the updates that counted, from {points[0].y:.4f} to {points[-1].y:.4f}.",
        table=Table(
            "Training loss by rounds",
            columns("round", "loss"),
            [[f"{point.x}", f"{point.y:.4f}"] for point in points],
        ),
    )


ROUND_COLUMNS = columns(
    *("round", "layers", "counted", "refused", "texts", "loss", "score", "95 % interval", "passes per text"),
    *("seconds", "peak MiB", "predicted MiB", "sent MiB", "received MiB", "read MiB"),
)


def _round_section(run: RunView) -> Section | None:
    if not run.rounds:
        return None
    shown = run.rounds[-MOST_ROWS:]
    paragraphs = [f"The last {MOST_ROWS:,} of {len(run.rounds):,} rounds."] if len(shown) < len(run.rounds) else []
    rows = [_round_row(line) for line in shown]
    table = Table("Every round: costs are sums over its devices, peaks the largest of theirs", ROUND_COLUMNS, rows)
    return Section("rounds", "Round by round", paragraphs, tables=[table])


def _round_row(line: RoundView) -> list[str]:
    cost, score = line.cost, line.score
    trained = f"{line.trained} without {some([*map(str, line.kept)])}" if line.kept else line.trained
    return [
        str(line.number),
        trained or f"state {line.problem or 'before is missing'}",
        f"{len(line.accepted):,} of {line.asked:,}",
        f"{len(line.refused):,}" if line.refused else "",
        "" if line.texts is None else f"{line.texts:,}",
        "" if line.train_loss is None else f"{line.train_loss:.4f}",
        score_number(score) if score else "",
        score_interval(score) if score else "",
        f"{cost.per_text:.1f}" if cost and cost.visits else "",
        f"{cost.seconds:,.1f}" if cost else "",
        mebibytes(cost.peak_bytes) if cost else "",
        mebibytes(line.predicted_peak_bytes) if line.predicted_peak_bytes else "",
        *((mebibytes(cost.bytes_up), mebibytes(cost.bytes_down), mebibytes(cost.bytes_read)) if cost else ("", "", "")),
    ]


def _settings_section(run: RunView) -> Section:
    settings = run.plan.settings
    rows = [[name, _shown(value), _shown(default)] for name, value, default in changed(settings)]
    table = Table(
        "Settings that differ from their defaults, with what the plan decided where the default is auto",
        columns("setting", "here", "default", text=3),
        rows,
        folded=False,
    )
    return Section("settings", "Settings", tables=[table] if rows else [], codes=[_recipe(run)])


def changed(settings: Settings) -> Iterator[tuple[str, Any, Any]]:
    """Each setting that differs from its default, with both values."""
    defaults = Settings().model_copy(update={"chain": default_settings(settings.chain.method)})
    for (name, value), (_, default) in zip(settings, defaults, strict=True):
        if isinstance(value, BaseModel):
            there = dict(default)
            yield from ((f"{name}.{key}", one, there[key]) for key, one in value if one != there[key])
        elif value != default:
            yield name, value, default


def _shown(value: Any) -> str:
    text = to_toml(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _recipe(run: RunView) -> Code:
    """The recipe that makes this plan again: a simulation's own, or the plan's settings."""
    settings = run.federation.settings if run.federation else run.plan.settings
    labels = settings.task.labels
    if len(labels) <= MOST_LABELS:
        return Code("Every setting, as recipe.toml", write_recipe(settings), folded=True)
    task = settings.task.model_copy(update={"labels": ()})
    text = write_recipe(settings.model_copy(update={"task": task}))
    return Code(f"Every setting but the {len(labels):,} labels, as recipe.toml", text, folded=True)


def _lineage_section(run: RunView) -> Section:
    facts = [
        ["base model", f"{run.plan.model.model_type}, {run.plan.model.num_layers} layers", run.plan.model.digest],
        ["plan", "signed by the coordinator" if run.signed else "unsigned", run.plan_digest],
        *(["coordinator", "its public key", key] for key in [run.plan.trust.coordinator] if key),
        *(["evaluated on", several(score.texts, "text"), score.data] for score in [run.last] if score),
        ["newest state", f"after {several(len(run.rounds), 'round')}", run.state],
    ]
    of_run = Table("What this run is made of", columns("what", "", "digest", text=3), facts, folded=False)
    rows = [
        [str(line.number), line.state, line.parent, f"{len(line.accepted):,}", line.problem or "here"]
        for line in run.rounds[-MOST_ROWS:]
    ]
    heads = (Column("round"), Column("state", numeric=False), Column("made from", numeric=False))
    states = Table(
        "Each state and the one that it was made from",
        (*heads, Column("updates"), Column("artifact", numeric=False)),
        rows,
    )
    text = "The name of an artifact is the SHA-256 of its manifest: 'sha256sum manifest.json' prints it."
    return Section("lineage", "Lineage", [text], tables=[of_run, *([states] if rows else [])])


def _again_section(run: RunView) -> Section:
    commands = _simulated(run) if run.federation else _by_hand(run)
    look = "\n".join(
        ["chainctl verify RUN/plan RUN/states/*", "chainctl log STATE", "chainctl report RUN -o report.html"]
    )
    return Section(
        "again",
        "How to run it again",
        [_again_text(run)],
        codes=[Code("The same run", "\n".join(commands)), Code("Check it, and make this page again", look)],
    )


def _again_text(run: RunView) -> str:
    text = "recipe.toml is under Settings. The base model is the one whose digest is under Lineage."
    made_of = run.federation
    if made_of is None:
        return f"{text} Each device profiles and trains on its own texts, which nobody else has."
    text += f" The digest of the training texts is {made_of.data}, that of the test texts {made_of.test}."
    if len(made_of.memory_budgets) > 1:
        text += " The devices had several memory budgets in turn, which the command cannot be given."
    return text


def _simulated(run: RunView) -> list[str]:
    made_of = run.federation
    assert made_of is not None
    split = "--iid" if made_of.alpha is None else f"--alpha {made_of.alpha:g}"
    options = [f"--devices {made_of.devices}", split, f"--rounds {len(run.rounds)}"]
    every = _evaluated_every(run.rounds)
    options += [f"--eval-every {every}"] if every > 1 else []
    options += [f"--memory-budget {made_of.memory_budgets[0]}"] if len(made_of.memory_budgets) == 1 else []
    return [
        "chainctl simulate --model MODEL --data TRAIN --test TEST --recipe recipe.toml \\",
        f"    {' '.join(options)} --out RUN",
    ]


def _evaluated_every(rounds: Sequence[RoundView]) -> int:
    """The smallest number that explains which rounds were evaluated; the last one always is."""
    evaluated = {line.number for line in rounds if line.score}
    numbers = range(1, len(rounds) + 1)
    last = len(rounds)
    return next((every for every in numbers if evaluated == {one for one in numbers if one % every == 0} | {last}), 1)


def _by_hand(run: RunView) -> list[str]:
    signed = run.signed
    key, own = (" --key COORDINATOR", " --key DEVICE") if signed else ("", "")
    roster = " --roster roster.toml" if signed else ""
    expires = f" --expires {run.plan.trust.expires}" if run.plan.trust.expires else ""
    begin = "--plan plan --state states/0000"
    return [
        "# on each device",
        f"chainctl profile --model MODEL --data TEXTS --recipe recipe.toml --device DEVICE{own} --out profiles/DEVICE",
        "# on the coordinator",
        "chainctl plan profiles/* --model MODEL --recipe recipe.toml --out plan --state states/0000"
        f"{roster}{key}{expires}",
        f"# then {several(len(run.rounds), 'round')}: on each device that the state names",
        f"chainctl train-window --model MODEL {begin} --data TEXTS --device DEVICE{own} --out updates/0000/DEVICE",
        "# and on the coordinator",
        f"chainctl aggregate updates/0000 {begin}{key} --out states/0001",
        f"chainctl eval --model MODEL --plan plan --state states/0001 --data TEST{key} --out evals/0001",
    ]
