"""chainctl recipe"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, existed_already, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Force, Set, TextColumn, command_group
from chainctl.streams import write_document
from schemas.errors import UsageProblem

app = command_group(help="Write recipes: the settings of a federation.")


class Preset(StrEnum):
    """Settings to start from."""

    DEFAULT = "default"
    INSTRUCTION = "instruction"
    CHAINFED = "chainfed"


@app.callback()
def recipe() -> None:
    """Write recipes: the settings of a federation."""


@app.command()
@with_dry_run
@with_console
def new(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where the recipe goes; - prints it.")],
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Labelled texts; the recipe gets their label set.")
    ] = None,
    text_column: TextColumn = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    preset: Annotated[
        Preset, typer.Option(help="instruction: Alpaca records, as in the paper; chainfed: the paper's chain.")
    ] = Preset.DEFAULT,
    set_: Set = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Write a recipe with every setting, its default and what it means."""
    if data is not None and preset is Preset.INSTRUCTION:
        raise UsageProblem("instruction data has no label set", hint="leave --data out")
    if str(out) != "-":
        from stages.store.output import check_output

        check_output(out, force=force or out.is_file())  # it may be the same one
    from chainctl.presets import PRESETS
    from schemas.recipe import parse_recipe
    from stages.process import intent
    from stages.report.recipe import write_recipe

    labels: tuple[str, ...] = ()
    if data is not None:
        from stages.data.load import label_set, load_examples

        labels = label_set(load_examples(data, text_column=text_column, label_column=label_column))
    settings = PRESETS[preset.value]
    columns = {"text_column": text_column, "label_column": label_column, "labels": labels}
    text = write_recipe(settings.model_copy(update={"task": settings.task.model_copy(update=columns)}))
    if set_:
        text = write_recipe(parse_recipe(text, source=f"the preset {preset.value}", overrides=set_))
    if str(out) == "-":
        intent.begin()
        write_document(text)
        return
    from stages.store.files import refuse_existing, write_file
    from stages.store.regular import holds

    note = existed_already(out, force=force)
    if not note:
        write_file(out, text.encode())
    elif not holds(out, text.encode()):
        refuse_existing(out, force=force, place="FILE")
    console.say(f"recipe with {len(labels)} labels -> {out}{note}" if labels else f"recipe -> {out}{note}")
    skipped = {} if data is None else console.say_left_out(data)
    console.result(path=out, labels=labels, skipped=skipped)
