"""chainctl trust: the coordinators whose signed plans this machine accepts."""

from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Plan, State, command_group, parse_name

app = command_group(help="Choose the coordinators whose signed plans this machine accepts.")
Name = Annotated[str, typer.Argument(metavar="NAME", parser=parse_name, help="Local name of the coordinator.")]


@app.command()
@with_dry_run
@with_console
def add(
    name: Name,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Its public key, not received with the plan itself: ed25519:…")
    ],
    *,
    console: Console,
) -> None:
    """Pin a coordinator's key.

    From then on this machine accepts only signed plans, from pinned coordinators.
    """
    from stages.store.signing import check_key_text
    from stages.store.trust import Trust

    public = check_key_text(key)
    Trust.of_this_machine().add(name, public)
    console.say(f"{name} {public} is trusted here; only signed plans are accepted from now on")
    console.result(name=name, key=public)


@app.command("list")
@with_console
def list_(*, console: Console) -> None:
    """List every pinned coordinator."""
    from stages.store.trust import Trust

    pins = Trust.of_this_machine().pins()
    console.table(("name", "key"), [(pin.name, pin.key) for pin in pins])
    console.result(coordinators=[pin.model_dump() for pin in pins])


@app.command()
@with_dry_run
@with_console
def remove(name: Name, *, console: Console) -> None:
    """Stop trusting a coordinator."""
    from stages.store.trust import Trust

    Trust.of_this_machine().remove(name)
    console.say(f"{name} is no longer trusted")
    console.result(name=name)


@app.command()
@with_dry_run
@with_console
def accept(plan: Plan, state: State, *, console: Console) -> None:
    """Train on a state that cannot be shown to come from the last one.

    A device follows one history of states.  Use this after asking the coordinator, by another way than the state came,
    whether its digest is right: from then on this machine accepts only states that come from it.
    """
    from stages.store.newest import accept as accept_state
    from stages.store.trust import open_trusted

    planned, current = open_trusted(plan, state)
    before = accept_state(planned, current)
    round_number = current.manifest.round
    was = f"round {before.round}, {before.state}" if before else "nothing"
    console.say(f"accepted: round {round_number}, {current.digest}; before: {was}")
    console.result(round=round_number, state=current.digest, before=before.model_dump(mode="json") if before else None)
