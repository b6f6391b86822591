"""chainctl export"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Force, Json, ModelDir, Plan, Quiet, State, Verify, VerifyWeights


class Format(StrEnum):
    """What others load."""

    HF = "hf"
    ADAPTERHUB = "adapterhub"
    ONNX = "onnx"


def export(
    model: ModelDir,
    plan: Plan,
    state: State,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the folder goes.")],
    format: Annotated[
        Format,
        typer.Option("--format", help="hf: base and adapters, for transformers; adapterhub: adapters alone; onnx."),
    ] = Format.HF,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--evaluation", metavar="DIR", help="For the model card; may be repeated.")
    ] = None,
    verify: VerifyWeights = Verify.ONCE,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a state home: a folder that other libraries load, with a model card."""
    console = Console(json=json, quiet=quiet)
    from stages.process.footprint import keep_small

    if format is not Format.ONNX:  # whose exporter needs all of torch
        keep_small()
    from stages.export.export import run

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
    console.say(f"{format.value}, {done.bytes / 2**20:.1f} MiB -> {out}")
    console.result(path=out, format=format.value, bytes=done.bytes, notes=done.notes)
