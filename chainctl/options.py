"""Options that commands share, and how their values are read."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import BadInput, UsageProblem

if TYPE_CHECKING:
    from schemas.settings import Settings
    from stages.store.cache_directory import CacheDirectory
    from stages.store.signing import KeyRing, Signer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; messages go to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
ModelDir = Annotated[
    Path, typer.Option("--model", metavar="DIR", envvar="CHAINCTL_MODEL", help="Base model: a Hugging Face directory.")
]
Plan = Annotated[Path, typer.Option("--plan", metavar="DIR", help="Plan artifact.")]
State = Annotated[Path, typer.Option("--state", metavar="DIR", help="State artifact.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the artifact goes.")]
Data = Annotated[
    Path, typer.Option("--data", metavar="PATH", help="Texts: JSONL, CSV, Parquet, or a folder per class.")
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Name of this device (a-z, 0-9, dot, dash).")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="Settings; see 'chainctl recipe new'.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        envvar="CHAINCTL_MEMORY_BUDGET",
        help="Never use more than this: 2GiB, 512MiB. Default: the machine's memory.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="DIR",
        envvar="CHAINCTL_CACHE_DIR",
        help="Keep what left unchanged layers for next time. As private as the texts.",
    ),
]
CacheLimit = Annotated[
    str, typer.Option("--cache-limit", metavar="SIZE", help="Most that --cache-dir may take; oldest go first.")
]


Key = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", envvar="CHAINCTL_KEY", help="Sign with this key; see 'chainctl keys'."),
]


class Verify(StrEnum):
    """How often weights are compared with the fingerprint of the plan."""

    ALWAYS = "always"
    ONCE = "once"
    NEVER = "never"


class TextFormat(StrEnum):
    """What a record is: a text, or who said what."""

    PLAIN = "plain"
    ALPACA = "alpaca"
    CHAT = "chat"


Format = Annotated[
    TextFormat,
    typer.Option("--format", help="plain: a text column; alpaca: instruction, input, output; chat."),
]
VerifyWeights = Annotated[
    Verify,
    typer.Option("--verify", help="Compare weights with the plan's digests at each read, once a file version, never."),
]

DEFAULT_CACHE_LIMIT = "4GiB"
LARGEST_BYTES = 2.0**63
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def load_settings(recipe: Path | None, overrides: list[str] | None = None) -> "Settings":
    """Flags over environment over recipe over defaults."""
    from schemas.recipe import parse_recipe

    text = ""
    if recipe is not None:
        try:
            text = recipe.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"the recipe {recipe} cannot be read",
                values={"reason": type(error).__name__},
                hint="'chainctl recipe new recipe.toml' writes one",
            ) from None
    return parse_recipe(text, source=str(recipe or "the recipe"), environment=os.environ, overrides=overrides or [])


def cache_directory(path: Path | None, limit: str) -> "CacheDirectory | None":
    """The directory of `--cache-dir` with the limit of `--cache-limit`, where one was given."""
    size = parse_size(limit)
    if path is None:
        return None
    if path.exists() and not path.is_dir():
        raise UsageProblem(f"{path} is no directory", hint="give another --cache-dir")
    from stages.store.cache_directory import CacheDirectory

    return CacheDirectory(path, size or 0)


def open_key(name: str | None) -> "Signer | None":
    """The private key that `--key` names."""
    if name is None:
        return None
    check_name(name)
    return key_ring().open(name)


def key_ring() -> "KeyRing":
    """The keys on this machine."""
    from stages.store.signing import KeyRing
    from stages.store.trust import home_directory

    return KeyRing(home_directory())


def check_name(name: str) -> None:
    """A name of a key or a coordinator: as those of devices, so that it is a file name everywhere."""
    from pydantic import TypeAdapter, ValidationError

    from schemas.refs import DeviceName

    try:
        TypeAdapter(DeviceName).validate_python(name)
    except ValidationError:
        raise UsageProblem(
            "this cannot be a name", values={"expected": "a-z, 0-9, dot, dash; at most 64", "found": ascii(name)[:80]}
        ) from None


def parse_size(text: str | None) -> int | None:
    """`2GiB`, `512MiB`, `1.5GB` or a plain number of bytes, in bytes; None for None."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = UNITS.get(match[2].lower()) if match else None
    size = float(match[1]) * unit if match and unit else 0.0
    if not 1 <= size < LARGEST_BYTES:
        raise UsageProblem("this is no size", values={"expected": "2GiB, 512MiB or 1500000000", "found": text})
    return int(size)
