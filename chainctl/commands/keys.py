"""chainctl keys: Ed25519 keys to sign with."""

from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Json, Quiet, check_name, key_ring

app = typer.Typer(help="Keys to sign with.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key: a device's, or the coordinator's.")]


@app.command()
def new(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Make a key. The private part stays on this machine, readable by you alone."""
    console = Console(json=json, quiet=quiet)
    check_name(name)
    signer = key_ring().new(name)
    console.say(signer.public)
    console.result(name=name, key=signer.public)


@app.command("list")
def list_(json: Json = False, quiet: Quiet = False) -> None:
    """The keys on this machine."""
    console = Console(json=json, quiet=quiet)
    keys = list(key_ring().public_keys())
    console.table(("name", "key"), keys)
    console.result(keys=[{"name": name, "key": key} for name, key in keys])


@app.command()
def show(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """The public part, to be given to others: a line of the coordinator's roster, or 'chainctl trust add'."""
    console = Console(json=json, quiet=quiet)
    check_name(name)
    signer = key_ring().open(name)
    console.say(signer.public)
    console.result(name=name, key=signer.public)
