"""chainctl eval"""

from pathlib import Path
from typing import Annotated, Any

import typer

from chainctl.commands.benchmark import Benchmark, ask, say
from chainctl.console import Console
from chainctl.options import (
    DEFAULT_CACHE_LIMIT,
    CacheDir,
    CacheLimit,
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
from schemas.errors import UsageProblem


def evaluate(
    model: ModelDir,
    plan: Plan,
    state: State,
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PATH", help="Texts as for training; with --benchmark, its files."),
    ] = None,
    benchmark: Annotated[
        Benchmark | None, typer.Option("--benchmark", help="Ask a language model its questions; --data as published.")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", metavar="TASKS", help="Tasks of lm-evaluation-harness, with commas; extra [eval]."),
    ] = None,
    lm_eval_path: Annotated[
        Path | None, typer.Option("--lm-eval-path", metavar="DIR", help="The task files of --lm-eval; code there runs.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples before a question. Default: as published.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First questions of each group or task.")] = None,
    memory_budget: MemoryBudget = None,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = DEFAULT_CACHE_LIMIT,
    verify: VerifyWeights = Verify.ONCE,
    key: Key = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Accuracy, macro-F1 and confusion matrix of a state on labelled texts; perplexity where the task is causal-lm.

    With --benchmark or --lm-eval a language model answers questions.
    """
    console = Console(json=json, quiet=quiet)
    budget, cache = parse_size(memory_budget), cache_directory(cache_dir, cache_limit)
    from stages.model.footprint import keep_small

    keep_small()
    from schemas.perplexity import PerplexityManifest
    from stages.eval import run

    with console.progress() as progress:
        common: dict[str, Any] = {
            "model_dir": model,
            "plan": plan,
            "state": state,
            "out": out,
            "memory_budget_bytes": budget,
            "force": force,
            "progress": progress,
            "verify": verify.value,
            "signer": open_key(key),
        }
        if benchmark or lm_eval or lm_eval_path:
            answered = ask(benchmark, lm_eval, data, lm_eval_path, shots=shots, limit=limit, **common)
        elif data is None or shots is not None or limit is not None:
            raise UsageProblem(
                "say what to evaluate on",
                values={"expected": "--data PATH; --shots and --limit with --benchmark or --lm-eval only"},
            )
        else:
            answered, artifact = None, run(data=data, cache=cache, **common)
    if answered is not None:
        say(console, answered)
        return
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
