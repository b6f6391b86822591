"""chainctl simulate"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import (
    Alpha,
    Data,
    MemoryBudget,
    ModelDir,
    Out,
    RecipeFile,
    ScratchDir,
    Set,
    TrackerName,
    load_settings,
)
from schemas.devices import MOST_DEVICES


@with_dry_run
@with_console
def simulate(
    model: ModelDir,
    data: Data,
    test: Annotated[Path, typer.Option("--test", metavar="PATH", help="Held-out texts.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Set = None,
    devices: Annotated[int, typer.Option(min=1, max=MOST_DEVICES, help="Number of devices.")] = 20,
    per_round: Annotated[int | None, typer.Option(min=1, help="Devices per round; default: the recipe's.")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Number of rounds.")] = 20,
    alpha: Annotated[float, Alpha] = 1.0,
    iid: Annotated[bool, typer.Option("--iid", help="Split evenly instead.")] = False,
    eval_every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations.")] = 1,
    memory_budget: MemoryBudget = None,
    scratch_dir: ScratchDir = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Method to use instead of the recipe's, such as linear-probe.")
    ] = None,
    no_dlct: Annotated[
        bool, typer.Option("--no-dlct", help="Ablation of the paper's chain: one layer at a time, on convergence.")
    ] = False,
    no_gpo: Annotated[bool, typer.Option("--no-gpo", help="Ablation of the paper's chain: no global loss.")] = False,
    no_foat: Annotated[
        bool, typer.Option("--no-foat", help="Ablation of the paper's chain: start at layer 0.")
    ] = False,
    track: Annotated[
        list[TrackerName] | None,
        typer.Option("--track", help="Record settings and rounds with a tracker, round by round; may be repeated."),
    ] = None,
    track_dir: Annotated[
        Path | None,
        typer.Option("--track-dir", metavar="DIR", help="Where trackers keep their records; default: OUT/tracking."),
    ] = None,
    *,
    console: Console,
) -> None:
    """Run a whole federation on this machine, through the same stages.

    It reads and writes the same artifacts as real devices.  Run it again to resume where it stopped.
    """
    from schemas.methods.chain import ablated
    from schemas.plan import PlanManifest

    settings = load_settings(recipe, set_, method=method)
    if per_round is not None:
        federation = settings.federation.model_copy(update={"devices_per_round": per_round})
        settings = settings.model_copy(update={"federation": federation})
    chain = ablated(settings.chain, dlct=not no_dlct, gpo=not no_gpo, foat=not no_foat)
    if chain != settings.chain:
        console.say("the paper's chain without that part; to compare, simulate 'recipe new --preset chainfed' too")
    settings = settings.model_copy(update={"chain": chain})
    from stages.process.footprint import prepare_process

    prepare_process()
    from chainctl.tracking import TRACKING, tracked
    from chainctl.watching import watching
    from stages.federation.folder import RunFolder
    from stages.federation.prepare import Federation
    from stages.federation.simulate import run
    from stages.process.arithmetic import price
    from stages.report.explain import head_lines
    from stages.report.tables import describe_cost
    from stages.store.artifact import open_artifact

    emulated = price(settings.numerics.computes_in)
    if emulated:
        console.say(f'the devices compute in {emulated} (numerics.compute = "auto" avoids it)')
    with (
        watching(console) as watching_alone,
        tracked(watching_alone, track or [], track_dir or out / TRACKING) as watcher,
    ):
        summary = run(
            Federation(
                model_dir=model,
                data=data,
                test=test,
                settings=settings,
                devices=devices,
                rounds=rounds,
                alpha=None if iid else alpha,
                memory_budgets=(memory_budget,) if memory_budget else (),
                eval_every=eval_every,
            ),
            out=out,
            on_begin=watcher.begin,
            on_round=watcher.round,
            progress=watcher.progress,
            scratch_dir=scratch_dir,
        )
    for path in dict.fromkeys((data, test)):
        console.say_left_out(path)
    for line in head_lines(open_artifact(RunFolder(out).plan, PlanManifest).manifest):
        console.say(line)
    for name, before, after in (
        ("accuracy", summary.accuracy_before, summary.accuracy_after),
        ("perplexity", summary.perplexity_before, summary.perplexity_after),
    ):
        if before is not None and after is not None:
            console.say(f"{name} {before:.4f} -> {after:.4f}")
    if summary.rounds:
        console.say(f"cost {describe_cost(summary.cost)}")
    console.say(f"state {summary.final_state} -> {out}")
    console.result(path=out, **summary.model_dump(mode="json"))
