"""chainctl profile"""

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import (
    Data,
    Device,
    Force,
    Key,
    MemoryBudget,
    ModelDir,
    Out,
    RecipeFile,
    ScratchDir,
    Set,
    load_settings,
    open_key,
)


@with_dry_run
@with_console
def profile(
    model: ModelDir,
    data: Data,
    device: Device,
    out: Out,
    recipe: RecipeFile = None,
    set_: Set = None,
    memory_budget: MemoryBudget = None,
    scratch_dir: ScratchDir = None,
    key: Key = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """On a device: measure how far each layer moves its texts.

    One CKA value per layer, between its output and the input.  Labels are not read.
    """
    settings = load_settings(recipe, set_)
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.process.arithmetic import price
    from stages.profile import run
    from stages.report.explain import describe_lengths
    from stages.session import Machine

    with console.progress() as progress:
        artifact = run(
            machine=Machine(model, memory_budget_bytes=memory_budget, scratch_dir=scratch_dir),
            data=data,
            settings=settings,
            device=device,
            out=out,
            force=force,
            progress=progress,
            signer=open_key(key),
        )
    manifest = artifact.manifest
    curve = (
        " ".join(f"{layer.cka:.3f}" for layer in manifest.layers) or "no curve: too few texts, or too few that differ"
    )
    console.say(f"{device}: {manifest.example_count} texts, CKA by layer: {curve}")
    if manifest.lengths:
        console.say(f"tokens: {describe_lengths(manifest.lengths)}")
    console.say_left_out(data)
    counts = console.say_truncated(artifact)
    emulated = price(settings.numerics.computes_in)
    if emulated:
        console.say(f'a plan of this recipe would compute in {emulated} (numerics.compute = "auto" avoids it)')
    console.say(f"profile {artifact.digest[:19]} -> {out}")
    console.result(
        path=out,
        digest=artifact.digest,
        cka=[layer.cka for layer in manifest.layers],
        lengths=manifest.lengths.model_dump() if manifest.lengths else None,
        texts=counts,
    )
