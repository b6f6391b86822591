"""chainctl train-window"""

from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import (
    DEFAULT_CACHE_LIMIT,
    CacheDir,
    CacheLimit,
    Data,
    Device,
    Force,
    Key,
    MemoryBudget,
    ModelDir,
    Out,
    Plan,
    ScratchDir,
    State,
    Verify,
    VerifyWeights,
    cache_directory,
    open_key,
)


@with_dry_run
@with_console
def train_window(
    model: ModelDir,
    plan: Plan,
    state: State,
    data: Data,
    device: Device,
    out: Out,
    memory_budget: MemoryBudget = None,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = DEFAULT_CACHE_LIMIT,
    scratch_dir: ScratchDir = None,
    verify: VerifyWeights = Verify.ONCE,
    window_size: Annotated[
        int | None, typer.Option("--window-size", min=1, help="Train only the last layers of the round's window.")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            "--checkpoint-every",
            metavar="STEPS",
            min=1,
            help="Write a checkpoint every that many steps; a rerun resumes from it.",
        ),
    ] = None,
    key: Key = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """On a device: train the round's window on its texts.

    Writes the tensors that were trained, and nothing else.
    """
    cache = cache_directory(cache_dir, cache_limit)
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.session import Machine
    from stages.train_window import run

    with console.progress() as progress:
        artifact = run(
            machine=Machine(
                model, memory_budget_bytes=memory_budget, verify=verify.value, cache=cache, scratch_dir=scratch_dir
            ),
            plan=plan,
            state=state,
            data=data,
            device=device,
            out=out,
            force=force,
            progress=progress,
            signer=open_key(key),
            window_size=window_size,
            checkpoint_every=checkpoint_every,
            say=console.say,
        )
    manifest, measured = artifact.manifest, artifact.measured()
    loss = manifest.loss
    console.say(
        f"{device}: layers {manifest.assignment}, {manifest.steps} steps on {manifest.example_count} texts, "
        f"loss {loss.first:.3f} -> {loss.last:.3f}"
    )
    console.say_left_out(data)
    counts = console.say_truncated(artifact)
    if measured and measured.peak_bytes and measured.predicted_peak_bytes:
        predicted = measured.predicted_peak_bytes / 2**20
        console.say(f"peak memory {measured.peak_bytes / 2**20:.0f} MiB (predicted {predicted:.0f})")
    console.say(f"update {artifact.digest[:19]} -> {out}")
    console.result(
        path=out,
        digest=artifact.digest,
        round=manifest.round,
        layers=manifest.assignment.layers,
        loss=loss.model_dump(),
        peak_bytes=measured.peak_bytes if measured else None,
        predicted_peak_bytes=measured.predicted_peak_bytes if measured else None,
        seconds=measured.seconds if measured else None,
        texts=counts,
    )
