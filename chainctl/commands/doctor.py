"""chainctl doctor"""

from dataclasses import asdict

from chainctl.console import Console, with_console
from chainctl.options import MemoryBudget, ModelDir, RecipeFile, ScratchDir, Set, load_settings


@with_console
def doctor(
    model: ModelDir,
    recipe: RecipeFile = None,
    set_: Set = None,
    memory_budget: MemoryBudget = None,
    scratch_dir: ScratchDir = None,
    *,
    console: Console,
) -> None:
    """Predict which window sizes fit this device's memory.

    Prints the sizes of the model's parts, and the predicted peak memory of each window size.
    """
    settings = load_settings(recipe, set_)
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.doctor import examine, lines

    diagnosis = examine(model, settings, budget_bytes=memory_budget, scratch_dir=scratch_dir)
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
