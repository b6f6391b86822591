"""chainctl model"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, existed_already, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import (
    Dtype,
    Force,
    MemoryBudget,
    ModelArgument,
    Out,
    RecipeFile,
    Seed,
    Set,
    command_group,
    load_settings,
)
from schemas.refs import MOST_LAYERS

app = command_group(help="Import base models, inspect them, or generate one with random weights.")


@app.command()
@with_console
def check(
    directory: ModelArgument,
    *,
    console: Console,
) -> None:
    """Check that block-wise execution equals the architecture's own forward, on a tiny random model of it."""
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.streaming.check import check_model

    report = check_model(directory)
    for line in report.lines():
        console.say(line)
    console.result(**report.__dict__)


@app.command()
@with_console
def info(
    directory: ModelArgument,
    recipe: RecipeFile = None,
    set_: Set = None,
    memory_budget: MemoryBudget = None,
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint/--no-fingerprint", help="Hash every weight too: ten seconds or more for 7B.")
    ] = False,
    *,
    console: Console,
) -> None:
    """Show what a model is made of, and which windows fit which memory budget.

    Reads only headers, so the size of the model does not matter.
    """
    settings = load_settings(recipe, set_)
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.model_info import lines, look

    found = look(directory, settings, budget_bytes=memory_budget, fingerprint=fingerprint)
    for line in lines(found):
        console.say(line)
    extra = ("with this budget",) if memory_budget else ()
    rows = [
        (
            fit.window_size,
            round(fit.smallest_bytes / 2**20),
            round(fit.fastest_bytes / 2**20),
            *((fit.chosen or "too large",) if memory_budget else ()),
        )
        for fit in found.fits
    ]
    console.table(("Q", "streamed, MiB", "all in memory, MiB", *extra), rows)
    if memory_budget:
        console.say(f"largest of these that fits: Q = {found.largest_window}" if found.largest_window else "none fits")
    console.result(**asdict(found), largest_window=found.largest_window)


@app.command()
@with_dry_run
@with_console
def random(
    out: Out,
    like: Annotated[str, typer.Option("--like", metavar="NAME", help="Such as roberta-large or llama-2-7b.")],
    layers: Annotated[
        int | None, typer.Option(min=1, max=MOST_LAYERS, help="Fewer layers, or more; default: the model's own.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: the published model's.")] = None,
    seed: Seed = 0,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Write a model of a known size with random weights, to measure memory and time, not accuracy."""
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.model.random_weights import write_random_model

    named = dtype.value if dtype else None
    note = existed_already(out, force=force)
    with console.progress() as progress:
        size = write_random_model(like, out, seed=seed, dtype=named, layers=layers, force=force, progress=progress)
    console.say(f"{like}, {size / 2**30:.2f} GiB of random weights -> {out}{note}")
    console.result(path=out, like=like, bytes=size)


@app.command("import")
@with_dry_run
@with_console
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A GGUF file, or a folder of safetensors or .bin.")],
    out: Out,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights. Default: as stored; float32 for GGUF.")] = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Convert a published model to the directory that the stages stream, and check that it is complete.

    A folder is converted tensor by tensor. A GGUF file is unpacked whole, which takes memory for every weight in
    --dtype. Pickles are read as weights and nothing else, the source is not changed, and no socket is opened.
    """
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages import import_model

    note = existed_already(out, force=force)
    with console.progress() as progress:
        done = import_model.run(source, out, dtype=dtype.value if dtype else None, force=force, progress=progress)
    for line in import_model.lines(done):
        console.say(line)
    console.say(f"{done.fingerprint.model_type} -> {out}{note}")
    console.result(
        path=out,
        source=done.kind,
        tensors=done.tensors,
        bytes=done.weight_bytes,
        left_out=done.left_out,
        fingerprint=done.fingerprint.digest,
        notes=done.notes,
    )
