"""chainctl keys: Ed25519 keys to sign with."""

from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import command_group, key_ring, parse_name

app = command_group(help="Make and list the Ed25519 keys that artifacts are signed with.")
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", parser=parse_name, help="Name of the key: a device's, or the coordinator's."),
]


@app.command()
@with_dry_run
@with_console
def new(name: Name, *, console: Console) -> None:
    """Make a key.

    The private part stays on this machine, readable by you alone.
    """
    signer = key_ring().new(name)
    console.say(signer.public)
    console.result(name=name, key=signer.public)


@app.command("list")
@with_console
def list_(*, console: Console) -> None:
    """List the keys on this machine."""
    keys = list(key_ring().public_keys())
    console.table(("name", "key"), keys)
    console.result(keys=[{"name": name, "key": key} for name, key in keys])


@app.command()
@with_console
def show(name: Name, *, console: Console) -> None:
    """Print the public part of a key.

    It is given to others: as a line of the coordinator's roster, or to 'chainctl trust add'.
    """
    signer = key_ring().open(name)
    console.say(signer.public)
    console.result(name=name, key=signer.public)
