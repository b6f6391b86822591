"""chainctl profile"""

from chainctl.console import Console
from chainctl.options import (
    Data,
    Device,
    Force,
    Json,
    Key,
    MemoryBudget,
    ModelDir,
    Out,
    Quiet,
    RecipeFile,
    Set,
    load_settings,
    open_key,
    parse_size,
)


def profile(
    model: ModelDir,
    data: Data,
    device: Device,
    out: Out,
    recipe: RecipeFile = None,
    set_: Set = None,
    memory_budget: MemoryBudget = None,
    key: Key = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """On a device: how far does each layer move this device's texts from the input? (labels are not read)"""
    console = Console(json=json, quiet=quiet)
    settings, budget = load_settings(recipe, set_), parse_size(memory_budget)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.profile import run
    from stages.session import Machine

    with console.progress() as progress:
        artifact = run(
            machine=Machine(model, memory_budget_bytes=budget),
            data=data,
            settings=settings,
            device=device,
            out=out,
            force=force,
            progress=progress,
            signer=open_key(key),
        )
    manifest = artifact.manifest
    curve = " ".join(f"{layer.cka:.3f}" for layer in manifest.layers) or "too few texts for a curve"
    console.say(f"{device}: {manifest.example_count} texts, CKA by layer: {curve}")
    counts = console.say_what_was_cut(artifact)
    console.say(f"profile {artifact.digest[:19]} -> {out}")
    console.result(path=out, digest=artifact.digest, cka=[layer.cka for layer in manifest.layers], texts=counts)
