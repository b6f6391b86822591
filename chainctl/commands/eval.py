"""chainctl eval"""

from chainctl.console import Console
from chainctl.options import (
    DEFAULT_CACHE_LIMIT,
    CacheDir,
    CacheLimit,
    Data,
    Force,
    Json,
    Key,
    MemoryBudget,
    ModelDir,
    Out,
    Plan,
    Quiet,
    State,
    Verify,
    VerifyWeights,
    cache_directory,
    open_key,
    parse_size,
)


def evaluate(
    model: ModelDir,
    plan: Plan,
    state: State,
    data: Data,
    out: Out,
    memory_budget: MemoryBudget = None,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = DEFAULT_CACHE_LIMIT,
    verify: VerifyWeights = Verify.ONCE,
    key: Key = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, macro-F1 and confusion matrix of a state on labelled texts; perplexity where the task is causal-lm."""
    console = Console(json=json, quiet=quiet)
    budget, cache = parse_size(memory_budget), cache_directory(cache_dir, cache_limit)
    from stages.model.footprint import keep_small

    keep_small()
    from schemas.perplexity import PerplexityManifest
    from stages.eval import run

    with console.progress() as progress:
        artifact = run(
            model_dir=model,
            plan=plan,
            state=state,
            data=data,
            out=out,
            memory_budget_bytes=budget,
            force=force,
            progress=progress,
            cache=cache,
            verify=verify.value,
            signer=open_key(key),
        )
    manifest, counts = artifact.manifest, console.say_what_was_cut(artifact)
    if isinstance(manifest, PerplexityManifest):
        value = manifest.perplexity
        console.say(f"perplexity {value.value:.4f} (95 %: {value.low:.4f} to {value.high:.4f})")
        console.say(f"loss {manifest.loss.value:.4f} nats a token, {manifest.token_count} tokens")
        console.result(
            path=out,
            digest=artifact.digest,
            round=manifest.round,
            perplexity=value.model_dump(),
            loss=manifest.loss.model_dump(),
            texts=counts,
        )
        return
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
        texts=counts,
    )
