"""chainctl eval"""

from chainctl.console import Console
from chainctl.options import Data, Force, Json, ModelDir, Out, Plan, Quiet, State


def evaluate(
    model: ModelDir,
    plan: Plan,
    state: State,
    data: Data,
    out: Out,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, macro-F1 and confusion matrix of a state on labelled texts."""
    console = Console(json=json, quiet=quiet)
    from stages.eval import run

    with console.progress() as progress:
        artifact = run(model_dir=model, plan=plan, state=state, data=data, out=out, force=force, progress=progress)
    manifest = artifact.manifest
    for name, estimate in (("accuracy", manifest.accuracy), ("macro-F1", manifest.macro_f1)):
        console.say(f"{name} {estimate.value:.4f} (95 %: {estimate.low:.4f} to {estimate.high:.4f})")
    console.say(f"loss {manifest.loss:.4f} on {manifest.example_count} texts; rows true, columns predicted:")
    rows = [(label, *counts) for label, counts in zip(manifest.labels, manifest.confusion, strict=True)]
    console.table(("", *manifest.labels), rows)
    console.result(
        path=out,
        digest=artifact.digest,
        round=manifest.round,
        accuracy=manifest.accuracy.model_dump(),
        macro_f1=manifest.macro_f1.model_dump(),
        loss=manifest.loss,
        confusion=manifest.confusion,
    )
