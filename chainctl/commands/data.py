"""chainctl data: columns, split and holdout"""

from typing import Annotated

import typer

from chainctl.console import Console, existed_already, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import (
    Alpha,
    DataArgument,
    Force,
    Format,
    OutFolder,
    Seed,
    TextColumn,
    TextFormat,
    command_group,
    parse_number,
)
from schemas.devices import MOST_DEVICES
from schemas.errors import UsageProblem

app = command_group(help="Split labelled texts over devices, or hold some out for testing.")

LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the label. Default: label; none for instruction data (label with --alpha). "
        "A label is a text (blanks around it do not count), a number, true or false: 1.0 is 1, True is true."
    ),
]

DropEmpty = Annotated[
    bool, typer.Option("--drop-empty", help="Leave out records without a text or a label, and say how many.")
]


@app.command()
@with_console
def columns(data: DataArgument, *, console: Console) -> None:
    """List the columns of a file. In a table without column names, these are its first record."""
    from stages.data.load import column_names

    names = column_names(data)
    for name in names:
        console.say(name)
    console.result(path=data, columns=names)


@app.command()
@with_dry_run
@with_console
def split(
    data: DataArgument,
    out: OutFolder,
    devices: Annotated[int, typer.Option(min=1, max=MOST_DEVICES, help="Number of devices.")],
    alpha: Annotated[float | None, Alpha] = None,
    iid: Annotated[bool, typer.Option("--iid", help="Split evenly at random.")] = False,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    label_column: LabelColumn = None,
    format: Format = TextFormat.PLAIN,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Let devices stay empty.")] = False,
    drop_empty: DropEmpty = False,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Write one JSONL file per device: DIR/device-00.jsonl, …

    Their columns are text and label, whatever those of DATA: what reads them needs no names of columns.
    """
    if (alpha is None) != iid:
        raise UsageProblem(
            "--alpha or --iid is needed, and not both",
            values={"expected": "either --alpha A or --iid"},
            hint="--iid splits evenly; --alpha 1.0 gives each device its own mix of labels",
        )
    from schemas.settings import PromptSettings
    from stages.data.split import split_file

    note = existed_already(out, force=force)
    empty: list[str] | None = [] if drop_empty else None
    sizes = split_file(
        data,
        out,
        devices=devices,
        alpha=alpha,
        seed=seed,
        text_column=text_column,
        label_column=label_column or ("label" if format is TextFormat.PLAIN or alpha is not None else None),
        prompt=PromptSettings(format=format.value),
        allow_empty=allow_empty,
        empty=empty,
        force=force,
    )
    total, least, most = sum(sizes.values()), min(sizes.values()), max(sizes.values())
    console.say(f"{total} texts on {len(sizes)} devices, {least} to {most} each{_left_out(empty)} -> {out}{note}")
    console.result(path=out, texts=sizes, empty=empty or [], skipped=console.say_left_out(data))


@app.command()
@with_dry_run
@with_console
def holdout(
    data: DataArgument,
    out: OutFolder,
    fraction: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            parser=parse_number("--fraction", "above 0, below 1", lambda number: 0 < number < 1),
            help="Share of every class to hold out.",
        ),
    ] = 0.2,
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Keep the first of equal texts.")] = False,
    drop_empty: DropEmpty = False,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    label_column: LabelColumn = None,
    format: Format = TextFormat.PLAIN,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Write DIR/train.jsonl and DIR/test.jsonl, with the same shares of every class.

    Their columns are text and label, whatever those of DATA: what reads them needs no names of columns.
    """
    from schemas.settings import PromptSettings
    from stages.data.split import holdout_file

    note = existed_already(out, force=force)
    empty: list[str] | None = [] if drop_empty else None
    sizes = holdout_file(
        data,
        out,
        fraction=fraction,
        seed=seed,
        text_column=text_column,
        label_column=label_column or ("label" if format is TextFormat.PLAIN else None),
        prompt=PromptSettings(format=format.value),
        deduplicate=drop_duplicates,
        empty=empty,
        force=force,
    )
    kept = f"{sizes['train']} texts to train on, {sizes['test']} held out"
    console.say(f"{kept}, {sizes['dropped']} duplicates dropped{_left_out(empty)} -> {out}{note}")
    console.result(path=out, texts=sizes, empty=empty or [], skipped=console.say_left_out(data))


def _left_out(empty: list[str] | None) -> str:
    return "" if empty is None else f", {len(empty)} without a text or a label left out"
