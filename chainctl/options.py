"""Options that commands share, and how their values are read."""

import math
import os
import re
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from schemas.errors import BadInput, ChainError, UsageProblem

if TYPE_CHECKING:
    from schemas.settings import Settings
    from stages.store.cache_directory import CacheDirectory
    from stages.store.signing import KeyRing, Signer

LARGEST_BYTES = 2**63
# pydantic.ByteSize would also take 1,5GB for one byte, and 2G is 10⁹ to some and 2³⁰ to others: both are refused here.
SIZE = re.compile(r"\s*\d+(\.\d+)?\s*(([kmgt]i?)?b)?\s*", re.ASCII | re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """`2GiB`, `512MiB`, `1.5GB` or a plain number of bytes, in bytes.  Raises `UsageProblem`."""
    if isinstance(text, int):  # a default
        return text
    from pydantic import ByteSize, TypeAdapter

    size = TypeAdapter(ByteSize).validate_python(text) if SIZE.fullmatch(text) else 0
    if not 1 <= size < LARGEST_BYTES:
        raise UsageProblem("this is not a size", values={"expected": "2GiB, 512MiB or 1500000000", "found": text})
    return int(size)


def parse_name(text: str) -> str:
    """A name of a device, a key or a coordinator, so that it is a file name everywhere.  Raises `UsageProblem`."""
    from pydantic import TypeAdapter, ValidationError

    from schemas.refs import DeviceName

    try:
        return TypeAdapter(DeviceName).validate_python(text)
    except ValidationError:
        near = similar_name(text)
        raise UsageProblem(
            "this cannot be a name",
            values={
                "expected": "a-z, 0-9, dot, dash, underscore; the first and last a letter or digit; at most 64",
                "found": ascii(text)[:80],
            },
            hint=f"{near} would do" if near else "device-00 would do",
        ) from None


def similar_name(text: str) -> str:
    """What is left of a text as a name: `hospital-a` of `Hospital A`; empty where nothing is."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", errors="ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain)[:64].strip("._-")


def parse_number(option: str, expected: str, holds: Callable[[float], bool]) -> Callable[[str | float], float]:
    """A parser of finite numbers that keep a rule, which `expected` says; it raises `UsageProblem`."""

    def parse(text: str | float) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not holds(number):
            raise UsageProblem(f"{option} is out of range", values={"expected": expected, "found": ascii(text)[:80]})
        return number

    return parse


class Verify(StrEnum):
    """How often weights are compared with the fingerprint in the plan."""

    ALWAYS = "always"
    ONCE = "once"
    NEVER = "never"


class TextFormat(StrEnum):
    """What a record is: a text, an instruction with its response, or a conversation."""

    PLAIN = "plain"
    ALPACA = "alpaca"
    CHAT = "chat"


class LogFormat(StrEnum):
    """What stderr is: lines for people, or events for machines."""

    TEXT = "text"
    JSONL = "jsonl"


class TrackerName(StrEnum):
    """A module of `stages.trackers`."""

    JSONL = "jsonl"
    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


class Dtype(StrEnum):
    """How weights are stored."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


# What every command may take.
LOG_FORMAT_FLAG, LOG_FORMAT_VARIABLE = "--log-format", "CHAINCTL_LOG_FORMAT"
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        envvar="CHAINCTL_LOG_FORMAT",
        help="jsonl: stderr holds events, one JSON object a line; see 'chainctl schema log-event'.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
LARGEST_SEED = 2**53 - 1  # as in `Settings`
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Seed of everything that is drawn at random.")
]
Alpha = typer.Option(
    "--alpha",
    metavar="A",
    parser=parse_number("--alpha", "a number above 0", lambda number: number > 0),
    help="Dirichlet concentration of the label skew.",
)

# Models, texts and artifacts.
ModelDir = Annotated[
    Path, typer.Option("--model", metavar="DIR", envvar="CHAINCTL_MODEL", help="Base model: a Hugging Face directory.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model directory.")]
Data = Annotated[Path, typer.Option("--data", metavar="PATH", help="Texts: JSON, CSV, Parquet, or a folder per class.")]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="JSON (lines or a list), CSV, TSV or Parquet, compressed or not; a folder of such files; or a folder per "
        "class, with texts at any depth.",
    ),
]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column of the text.")]
Format = Annotated[
    TextFormat, typer.Option("--format", help="plain: a text column; alpaca: instruction, input, output; chat.")
]
Plan = Annotated[Path, typer.Option("--plan", metavar="DIR", help="Plan artifact.")]
State = Annotated[Path, typer.Option("--state", metavar="DIR", help="State artifact.")]
Artifacts = Annotated[list[Path], typer.Argument(metavar="DIR…", help="Artifacts of any kind.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the artifact goes.")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the folder goes.")]

# Who runs a command, and with what settings.
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", parser=parse_name, help="Name of this device (a-z, 0-9, dot, dash)."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        envvar="CHAINCTL_KEY",
        parser=parse_name,
        help="Sign with this key; see 'chainctl keys'.",
    ),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="Settings; see 'chainctl recipe new'.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
]

# What a command may use of the machine.  Sizes arrive in bytes.
MemoryBudget = Annotated[
    int | None,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        envvar="CHAINCTL_MEMORY_BUDGET",
        parser=parse_size,
        help="Never use more memory than this: 2GiB, 512MiB. Default: the machine's memory.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        envvar="CHAINCTL_CACHE_DIR",
        help="Keep the hidden states of frozen layers for next time. As private as the texts. What another "
        "home put there is computed again.",
    ),
]
CacheLimit = Annotated[
    int,
    typer.Option(
        "--cache-limit",
        metavar="SIZE",
        parser=parse_size,
        show_default=False,
        help="Most that --cache-dir may take; the oldest entries are removed first. Default: 4GiB.",
    ),
]
DEFAULT_CACHE_LIMIT = 4 * 2**30
ScratchDir = Annotated[
    Path | None,
    typer.Option(
        "--scratch-dir",
        metavar="DIR",
        envvar="CHAINCTL_SCRATCH_DIR",
        help="Put temporary files here; they have no name. Default: the folder of --out. If that is on a stick or a "
        "network: --cache-dir, the user's cache folder or a folder of temporary files, the first that is on a disk.",
    ),
]
VerifyWeights = Annotated[
    Verify,
    typer.Option(
        "--verify", help="Compare weights with the plan's digests at every read, once per file version, never."
    ),
]


class CommandGroup(TyperGroup):
    """A group whose help gives each command its whole summary, in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A heading and a list for each section, as far as commands name one."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in commands:
            summary = (getattr(command, "help", None) or "").partition("\n\n")[0]
            section = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(section, []).append((name, " ".join(summary.split())))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def command_group(**options: Any) -> typer.Typer:
    """A group of commands that prints plain help and lets errors through; `options` are those of `typer.Typer`."""
    plain: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}
    return typer.Typer(**{"cls": CommandGroup, "no_args_is_help": True, **plain, **options})


def load_settings(recipe: Path | None, overrides: list[str] | None = None, *, method: str | None = None) -> "Settings":
    """Flags over environment over recipe over defaults; another `method` brings its own.

    Raises `BadInput`, `UsageProblem`.
    """
    from schemas.recipe import parse_recipe

    text, source = read_recipe(recipe)
    return parse_recipe(text, source=source, environment=os.environ, overrides=overrides or [], method=method)


def read_recipe(recipe: Path | None) -> tuple[str, str]:
    """The text of a recipe, empty where there is none, and what errors call it.  Raises `BadInput`."""
    text = "" if recipe is None else read_text(recipe, "recipe", hint="'chainctl recipe new recipe.toml' writes one")
    return text, str(recipe or "the recipe")


def read_text(path: Path, what: str, *, hint: str = "") -> str:
    """A small file that a person wrote.  Raises `BadInput`, which calls it `what`."""
    from stages.process import intent
    from stages.store.foreign import read_document

    intent.will_read(path, what)
    try:
        return read_document(path).decode("utf-8-sig")  # Windows' editors begin with a byte order mark
    except (ChainError, UnicodeDecodeError) as error:
        reason = error.values.get("found", error.fact) if isinstance(error, ChainError) else "it is not UTF-8"
        raise BadInput(f"the {what} {path} cannot be read", values={"reason": reason}, hint=hint) from None


def cache_directory(path: Path | None, limit_bytes: int) -> "CacheDirectory | None":
    """The directory of `--cache-dir` with the limit of `--cache-limit`, where one was given."""
    if path is None:
        return None
    if path.exists() and not path.is_dir():
        raise UsageProblem(f"{path} is not a directory", hint="give another --cache-dir")
    from stages.store.cache_directory import CacheDirectory

    return CacheDirectory(path, limit_bytes)


def open_key(name: str | None) -> "Signer | None":
    """The private key that `--key` names."""
    return None if name is None else key_ring().open(name)


def key_ring() -> "KeyRing":
    """The keys on this machine."""
    from stages.store.signing import KeyRing
    from stages.store.trust import home_directory

    return KeyRing(home_directory())
