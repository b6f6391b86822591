"""chainctl export"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, existed_already, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Force, ModelDir, OutFolder, Plan, State, Verify, VerifyWeights


class Format(StrEnum):
    """Formats that other libraries load."""

    HF = "hf"
    ADAPTERHUB = "adapterhub"
    ONNX = "onnx"


@with_dry_run
@with_console
def export(
    model: ModelDir,
    plan: Plan,
    state: State,
    out: OutFolder,
    format: Annotated[
        Format,
        typer.Option("--format", help="hf: base and adapters, for transformers; adapterhub: adapters alone; onnx."),
    ] = Format.HF,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--evaluation", metavar="DIR", help="For the model card; may be repeated.")
    ] = None,
    verify: VerifyWeights = Verify.ONCE,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Write a state as a folder that other libraries load.

    The folder has a model card, with the scores of every --evaluation.
    """
    from stages.process.footprint import prepare_process

    if format is not Format.ONNX:  # whose exporter needs all of torch
        prepare_process()
    from stages.export.export import run

    there = existed_already(out, force=force)
    done = run(
        model_dir=model,
        plan=plan,
        state=state,
        out=out,
        format=format.value,
        evaluations=evaluation or [],
        force=force,
        verify=verify.value,
    )
    for note in done.notes:
        console.say(note)
    console.say(f"{format.value}, {done.bytes / 2**20:.1f} MiB -> {out}{there}")
    console.result(path=out, format=format.value, bytes=done.bytes, notes=done.notes)
