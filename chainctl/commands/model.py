"""chainctl model"""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Force, Json, MemoryBudget, Out, Quiet, RecipeFile, Set, load_settings, parse_size

app = typer.Typer(no_args_is_help=True, help="Bring in base models, look at them, or make one up.")


@app.callback()
def model() -> None:
    """Bring in base models, look at them, or make one up."""


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model directory.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Does block-wise execution equal the architecture's own forward? Tried on a tiny random model of it."""
    console = Console(json=json, quiet=quiet)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.streaming.check import check_model

    report = check_model(directory)
    for line in report.lines():
        console.say(line)
    console.result(**report.__dict__)


Fingerprint = Annotated[
    bool, typer.Option("--fingerprint/--no-fingerprint", help="Hash every weight too: ten seconds or more for 7B.")
]


@app.command()
def info(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model directory.")],
    recipe: RecipeFile = None,
    set_: Set = None,
    memory_budget: MemoryBudget = None,
    fingerprint: Fingerprint = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a model is made of, and which windows fit which memory budget. Reads headers, so size does not matter."""
    console = Console(json=json, quiet=quiet)
    settings, budget = load_settings(recipe, set_), parse_size(memory_budget)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.model_info import lines, look

    found = look(directory, settings, budget_bytes=budget, fingerprint=fingerprint)
    for line in lines(found):
        console.say(line)
    asked = ("with this budget",) if budget else ()
    rows = [
        (
            fit.window_size,
            round(fit.smallest_bytes / 2**20),
            round(fit.fastest_bytes / 2**20),
            *((fit.chosen or "too large",) if budget else ()),
        )
        for fit in found.fits
    ]
    console.table(("Q", "streamed, MiB", "everything kept, MiB", *asked), rows)
    if budget:
        console.say(f"largest of these that fits: Q = {found.largest_window}" if found.largest_window else "none fits")
    console.result(**asdict(found), largest_window=found.largest_window)


class Dtype(StrEnum):
    """How weights are stored."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command()
def random(
    out: Out,
    like: Annotated[str, typer.Option("--like", metavar="NAME", help="Such as roberta-large or llama-2-7b.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers, or more; default: as the model has.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: as the model is published.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model of a known size with random weights: for memory and time, not for accuracy."""
    console = Console(json=json, quiet=quiet)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.model.random_weights import write_random_model

    named = dtype.value if dtype else None
    with console.progress() as progress:
        size = write_random_model(like, out, seed=seed, dtype=named, layers=layers, force=force, progress=progress)
    console.say(f"{like}, {size / 2**30:.2f} GiB of random weights -> {out}")
    console.result(path=out, like=like, bytes=size)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A GGUF file, or a folder of safetensors or .bin.")],
    out: Out,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights. Default: as they are; float32 for GGUF.")] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a published model into the directory that the stages stream, checked to be whole.

    A folder passes tensor by tensor. A GGUF file is unpacked whole: that takes memory for every weight in --dtype.
    Pickles are read as weights and nothing else, the source stays as it is, and nothing opens a socket.
    """
    console = Console(json=json, quiet=quiet)
    from stages.process.footprint import keep_small

    keep_small()
    from stages import import_model

    with console.progress() as progress:
        done = import_model.run(source, out, dtype=dtype.value if dtype else None, force=force, progress=progress)
    for line in import_model.lines(done):
        console.say(line)
    console.say(f"{done.fingerprint.model_type} -> {out}")
    console.result(
        path=out,
        source=done.kind,
        tensors=done.tensors,
        bytes=done.weight_bytes,
        left_out=done.left_out,
        fingerprint=done.fingerprint.digest,
        notes=done.notes,
    )
