"""chainctl bundle: pack and unpack"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Force, Json, Quiet, parse_size

app = typer.Typer(no_args_is_help=True, help="Artifacts in one file, to be carried on a stick.")


@app.command()
def pack(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Artifacts of any kind.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the bundle goes; any tar reads it.")],
    split: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Cut into FILE.001, FILE.002, …: FAT32 holds no file of 4GiB."),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify artifacts and write them to one file, or to parts of it."""
    part_bytes = parse_size(split)
    console = Console(json=json, quiet=quiet)
    from stages.report.tables import format_bytes
    from stages.store.bundle import pack as pack_bundle

    packed = pack_bundle(directories, out, part_bytes=part_bytes, force=force)
    names = [artifact.name for artifact in packed.index.artifacts]
    parts = f", {len(packed.paths)} parts" if packed.index.parts else ""
    said = "" if packed.is_new else " (there already)"
    console.say(f"{len(names)} artifacts, {format_bytes(packed.size_bytes)}{parts} -> {out}{said}")
    console.result(
        paths=packed.paths,
        digest=packed.index.digest,
        size_bytes=packed.size_bytes,
        is_new=packed.is_new,
        artifacts=[{"name": entry.name, "digest": entry.digest} for entry in packed.index.artifacts],
    )


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle; of a split one, FILE or FILE.001.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Each artifact goes to DIR/name.")],
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Refuse a bundle that holds more.")] = "16GiB",
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle to the last byte and put its artifacts in place, each complete or absent."""
    limit_bytes = parse_size(limit) or 0
    console = Console(json=json, quiet=quiet)
    from stages.store.bundle import unpack as unpack_bundle

    found = unpack_bundle(file, into, limit_bytes=limit_bytes, force=force)
    for one in found:
        artifact = one.artifact
        said = "" if one.is_new else " (there already)"
        console.say(f"whole  {artifact.manifest.KIND:<10} {artifact.digest[:19]}  {artifact.path}{said}")
    console.result(
        artifacts=[
            {
                "path": one.artifact.path,
                "name": one.name,
                "kind": one.artifact.manifest.KIND,
                "digest": one.artifact.digest,
                "is_new": one.is_new,
            }
            for one in found
        ]
    )
