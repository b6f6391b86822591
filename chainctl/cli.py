"""The command tree, and the one place where a refusal becomes a message and an exit code."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

import chainctl
from chainctl.commands import assets, bundle, data, keys, model, recipe, trust
from chainctl.commands.aggregate import aggregate
from chainctl.commands.demo import demo
from chainctl.commands.doctor import doctor
from chainctl.commands.eval import evaluate
from chainctl.commands.export import export
from chainctl.commands.generate import generate
from chainctl.commands.inspect import inspect
from chainctl.commands.log import log
from chainctl.commands.plan import plan
from chainctl.commands.profile import profile
from chainctl.commands.schema import schema
from chainctl.commands.simulate import simulate
from chainctl.commands.status import status
from chainctl.commands.train_window import train_window
from chainctl.commands.verify import verify
from chainctl.console import print_error
from schemas.errors import BadInput, ChainError

EPILOG = (
    "Exit codes: 0 done, 2 usage, 3 bad input, 4 not trusted (altered, unsigned), 5 does not fit the memory budget, "
    "6 too few updates, 7 waiting."
)
STAGES = "The five stages"
WHOLE = "Whole federations"
ARTIFACTS = "Artifacts"
PREPARE = "Preparation"
TRUST = "Trust"

app = typer.Typer(
    name="chainctl",
    help="Adapt a language model to private data that stays where it is, on devices that cannot hold the model.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """`--version`, before anything else is looked at."""
    if wanted:
        typer.echo(f"chainctl {chainctl.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def root(version: Version = False) -> None:
    """Adapt a language model to private data that stays where it is, on devices that cannot hold the model."""


app.command(rich_help_panel=WHOLE)(demo)
app.command(rich_help_panel=WHOLE)(simulate)
app.command(rich_help_panel=STAGES)(profile)
app.command(rich_help_panel=STAGES)(plan)
app.command("train-window", rich_help_panel=STAGES)(train_window)
app.command(rich_help_panel=STAGES)(aggregate)
app.command("eval", rich_help_panel=STAGES)(evaluate)
app.command(rich_help_panel=WHOLE)(status)
app.command(rich_help_panel=PREPARE)(doctor)
app.command(rich_help_panel=WHOLE)(generate)
app.command(rich_help_panel=ARTIFACTS)(export)
app.command(rich_help_panel=ARTIFACTS)(verify)
app.command(rich_help_panel=ARTIFACTS)(inspect)
app.command(rich_help_panel=ARTIFACTS)(log)
app.command(rich_help_panel=ARTIFACTS)(schema)
app.add_typer(bundle.app, name="bundle", rich_help_panel=ARTIFACTS)
app.add_typer(keys.app, name="keys", rich_help_panel=TRUST)
app.add_typer(trust.app, name="trust", rich_help_panel=TRUST)
app.add_typer(data.app, name="data", rich_help_panel=PREPARE)
app.add_typer(recipe.app, name="recipe", rich_help_panel=PREPARE)
app.add_typer(model.app, name="model", rich_help_panel=PREPARE)
app.add_typer(assets.app, name="assets", rich_help_panel=PREPARE)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except ChainError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)  # the reader of our output has gone
    except OSError as error:
        problem = disk_problem(error)
        print_error(problem, as_json="--json" in sys.argv)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def disk_problem(error: OSError) -> ChainError:
    """What the operating system refused, as a person reads it."""
    return BadInput(
        f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}",
        values={"disk": f"{shutil.disk_usage(Path.cwd()).free / 2**20:.0f} MiB free here"},
        hint="nothing half done was left; make room or choose another place, and run the same command again",
    )
