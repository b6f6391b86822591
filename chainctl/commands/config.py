"""chainctl config"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from chainctl.console import Console, with_console
from chainctl.options import RecipeFile, Set, command_group, read_recipe
from schemas.errors import UsageProblem

DEFAULT = "default"
FLAGS = {  # that the environment can give
    "--model": "CHAINCTL_MODEL",
    "--key": "CHAINCTL_KEY",
    "--memory-budget": "CHAINCTL_MEMORY_BUDGET",
    "--cache-dir": "CHAINCTL_CACHE_DIR",
    "--scratch-dir": "CHAINCTL_SCRATCH_DIR",
    "--log-format": "CHAINCTL_LOG_FORMAT",
}

app = command_group(help="Show the settings that a command would take, and where each comes from.")


@app.callback()
def config() -> None:
    """Show the settings that a command would take, and where each comes from."""


@app.command()
@with_console
def show(
    recipe: RecipeFile = None,
    set_: Set = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="DIR", help="Instead: what a plan has decided.")
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave the defaults out.")] = False,
    *,
    console: Console,
) -> None:
    """Print each setting, its value and where it comes from; then what the environment says of this machine.

    Flags stand over the environment, that over the recipe, that over the defaults.  A recipe is read only where
    --recipe names it: none is looked for.
    """
    from schemas.recipe import origins, parse_recipe, setting_values
    from stages.report.recipe import to_toml

    if plan is not None:
        if recipe is not None or set_:
            raise UsageProblem("a plan has settings of its own", hint="give --plan, or --recipe and --set")
        from schemas.plan import PlanManifest
        from stages.store.artifact import open_artifact

        values = setting_values(open_artifact(plan, PlanManifest).manifest.settings)
        sources = dict.fromkeys(values, "the plan")
    else:
        text, source = read_recipe(recipe)
        given: dict[str, Any] = {"source": source, "environment": os.environ, "overrides": set_ or []}
        values, sources = setting_values(parse_recipe(text, **given)), origins(text, **given)
    tables: dict[str, list[tuple[str, object, str]]] = {
        "setting": [(path, value, sources.get(path, DEFAULT)) for path, value in values.items()],
        "machine": list(places()),
    }
    for name, rows in tables.items():
        shown = tables[name] = [row for row in rows if not (changed and row[2] == DEFAULT)]
        if shown:
            console.table((name, "value", "from"), [(path, to_toml(value), origin) for path, value, origin in shown])
    sourced = {
        name: {path: {"value": value, "from": origin} for path, value, origin in rows} for name, rows in tables.items()
    }
    console.result(**sourced)


def places() -> Iterator[tuple[str, object, str]]:
    """What the environment decides besides settings: what it is, its value, and the variable or `default`."""
    from stages.process.scratch import user_cache
    from stages.store.trust import home_directory

    for name, path, variables in (
        ("keys and trust", home_directory(), ("CHAINCTL_HOME", "XDG_CONFIG_HOME")),
        ("cache", user_cache(), ("CHAINCTL_CACHE", "XDG_CACHE_HOME")),
    ):
        yield name, str(path), next((variable for variable in variables if os.environ.get(variable)), DEFAULT)
    for flag, variable in FLAGS.items():
        if os.environ.get(variable):
            yield flag, os.environ[variable], variable
