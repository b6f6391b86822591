"""chainctl doctor"""

from dataclasses import asdict

from chainctl.console import Console
from chainctl.options import Json, MemoryBudget, ModelDir, Quiet, RecipeFile, Set, load_settings, parse_size


def doctor(
    model: ModelDir,
    recipe: RecipeFile = None,
    set_: Set = None,
    memory_budget: MemoryBudget = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What fits this device: the model's parts, and the predicted peak of each window size."""
    console = Console(json=json, quiet=quiet)
    settings, budget = load_settings(recipe, set_), parse_size(memory_budget)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.doctor import examine, lines

    diagnosis = examine(model, settings, budget_bytes=budget)
    for line in lines(diagnosis):
        console.say(line)
    rows = [
        (
            fit.window_size,
            round(fit.fastest_bytes / 2**20),
            round(fit.smallest_bytes / 2**20),
            fit.chosen or "too large",
        )
        for fit in diagnosis.fits
    ]
    console.table(("Q", "fastest, MiB", "smallest, MiB", "with this budget"), rows)
    console.result(**asdict(diagnosis))
