"""chainctl bundle: pack and unpack"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Artifacts, Force, command_group, parse_size

app = command_group(help="Pack artifacts into one file to carry on a stick, and unpack them.")


@app.command()
@with_dry_run
@with_console
def pack(
    directories: Artifacts,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the bundle goes; any tar reads it.")],
    split: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Split into FILE.001, FILE.002, …: FAT32 holds no file of 4GiB."
        ),
    ] = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Verify artifacts and write them to one file, or to several parts.

    The signed manifests of earlier states go along with a signed state, as far as those are beside it.
    """
    from stages.report.tables import format_bytes
    from stages.store.bundle import pack as pack_bundle

    packed = pack_bundle(directories, out, part_bytes=split, force=force)
    names = [artifact.name for artifact in packed.index.artifacts]
    parts = f", {len(packed.paths)} parts" if packed.index.parts else ""
    note = "" if packed.is_new else " (existed already)"
    earlier = len(packed.index.history)
    if earlier:
        parts += f", signed manifests of {earlier} earlier states"
    console.say(f"{len(names)} artifacts, {format_bytes(packed.size_bytes)}{parts} -> {out}{note}")
    if packed.missing:
        console.say(
            f"note: {packed.missing} of the states before are not beside it, so their signed manifests are missing: a "
            "device that took no part since asks for them"
        )
    console.result(
        paths=packed.paths,
        digest=packed.index.digest,
        size_bytes=packed.size_bytes,
        is_new=packed.is_new,
        artifacts=[{"name": entry.name, "digest": entry.digest} for entry in packed.index.artifacts],
        earlier_states=earlier,
    )


@app.command()
@with_dry_run
@with_console
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle; if it is split, FILE or FILE.001.")],
    into: Annotated[
        Path,
        typer.Option("--into", metavar="DIR", help="Each artifact goes to DIR/name, earlier states to DIR/history."),
    ],
    limit: Annotated[
        int,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            show_default=False,
            help="Refuse a bundle that holds more. Default: 16GiB.",
        ),
    ] = 16 * 2**30,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Check a bundle down to the last byte and put its artifacts in place, each complete or absent."""
    from stages.store.bundle import unpack as unpack_bundle

    found = unpack_bundle(file, into, limit_bytes=limit, force=force)
    for one in found:
        artifact = one.artifact
        note = "" if one.is_new else " (existed already)"
        console.say(f"whole  {artifact.manifest.KIND:<10} {artifact.digest[:19]}  {artifact.path}{note}")
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
