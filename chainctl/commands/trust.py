"""chainctl trust: whom this machine believes."""

from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Json, Quiet, check_name

app = typer.Typer(help="Coordinators that this machine believes.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="What to call the coordinator here.")]


@app.command()
def add(
    name: Name,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Its public key, got by another way than the plan: ed25519:…")
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pin a coordinator's key. From then on this machine takes nothing that is not signed."""
    console = Console(json=json, quiet=quiet)
    check_name(name)
    from stages.store.signing import check_key_text
    from stages.store.trust import Trust

    public = check_key_text(key)
    Trust.of_this_machine().add(name, public)
    console.say(f"{name} {public} is believed here; unsigned plans are refused from now on")
    console.result(name=name, key=public)


@app.command("list")
def list_(json: Json = False, quiet: Quiet = False) -> None:
    """Every pinned coordinator."""
    console = Console(json=json, quiet=quiet)
    from stages.store.trust import Trust

    pins = Trust.of_this_machine().pins()
    console.table(("name", "key"), [(pin.name, pin.key) for pin in pins])
    console.result(coordinators=[pin.model_dump() for pin in pins])


@app.command()
def remove(name: Name, json: Json = False, quiet: Quiet = False) -> None:
    """Believe a coordinator no more."""
    console = Console(json=json, quiet=quiet)
    check_name(name)
    from stages.store.trust import Trust

    Trust.of_this_machine().remove(name)
    console.say(f"{name} is forgotten")
    console.result(name=name)
