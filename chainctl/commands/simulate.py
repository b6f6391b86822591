"""chainctl simulate"""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainctl.console import Console, with_console
from chainctl.options import Data, MemoryBudget, ModelDir, Out, RecipeFile, Set, load_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


class Method(StrEnum):
    """ChainFed, and what it is compared with."""

    CHAIN = "chain"
    FULL_ADAPTERS = "full-adapters"
    LINEAR_PROBE = "linear-probe"
    NO_FT = "no-ft"


@with_console
def simulate(
    model: ModelDir,
    data: Data,
    test: Annotated[Path, typer.Option("--test", metavar="PATH", help="Held-out texts.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Set = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices.")] = 20,
    per_round: Annotated[int | None, typer.Option(min=1, help="Devices per round; default: the recipe's.")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Number of rounds.")] = 20,
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration of the label skew.")] = 1.0,
    iid: Annotated[bool, typer.Option("--iid", help="Split evenly instead.")] = False,
    eval_every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations.")] = 1,
    memory_budget: MemoryBudget = None,
    method: Annotated[Method | None, typer.Option(help="The chain, or a reference; default: the recipe's.")] = None,
    no_dlct: Annotated[bool, typer.Option("--no-dlct", help="Ablation: one layer at a time, on convergence.")] = False,
    no_gpo: Annotated[bool, typer.Option("--no-gpo", help="Ablation: no global loss.")] = False,
    no_foat: Annotated[bool, typer.Option("--no-foat", help="Ablation: start at layer 0.")] = False,
    *,
    console: Console,
) -> None:
    """Run a whole federation on this machine, through the same stages.

    It reads and writes the same artifacts as real devices.  Run it again to resume where it stopped.
    """
    settings = load_settings(recipe, set_)
    if per_round is not None:
        federation = settings.federation.model_copy(update={"devices_per_round": per_round})
        settings = settings.model_copy(update={"federation": federation})
    named = str(method) if method else None
    settings = apply_switches(settings, method=named, no_dlct=no_dlct, no_gpo=no_gpo, no_foat=no_foat)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.federation.simulate import Federation, run

    with console.progress() as progress:
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
            on_round=lambda line: console.say(line.line()),
            progress=progress,
        )
    for name, before, after in (
        ("accuracy", summary.accuracy_before, summary.accuracy_after),
        ("perplexity", summary.perplexity_before, summary.perplexity_after),
    ):
        if before is not None and after is not None:
            console.say(f"{name} {before:.4f} -> {after:.4f}")
    console.say(f"state {summary.final_state} -> {out}")
    console.result(path=out, **asdict(summary), **summary.totals())


def apply_switches(
    settings: "Settings", *, method: str | None, no_dlct: bool, no_gpo: bool, no_foat: bool
) -> "Settings":
    """Settings with a method and the ablations of the paper."""
    changes: dict[str, Any] = {}
    if method:
        changes["method"] = method
    if no_dlct:
        changes |= {"window_size": 1, "advance": "on-convergence"}
    if no_gpo:
        changes["global_weight"] = 0.0
    if no_foat:
        changes["start"] = 0
    return settings.model_copy(update={"chain": settings.chain.model_copy(update=changes)})
