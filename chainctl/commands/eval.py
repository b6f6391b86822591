"""chainctl eval"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import (
    DEFAULT_CACHE_LIMIT,
    CacheDir,
    CacheLimit,
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
from schemas.errors import UsageProblem

if TYPE_CHECKING:
    from schemas.benchmark import BenchmarkManifest
    from schemas.evaluation import EvaluationManifest
    from schemas.perplexity import PerplexityManifest
    from stages.store.artifact import Artifact


class Benchmark(StrEnum):
    """Benchmarks whose published files can be read."""

    MMLU = "mmlu"
    CRASS = "crass"
    BBH = "bbh"
    DROP = "drop"
    ROUGE = "rouge"


@with_dry_run
@with_console
def evaluate(
    model: ModelDir,
    plan: Plan,
    state: State,
    out: Out,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Texts, or the files of a --benchmark as published.")
    ] = None,
    benchmark: Annotated[
        Benchmark | None, typer.Option("--benchmark", help="Ask the questions of a benchmark (causal-lm).")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", metavar="TASKS", help="Tasks of lm-evaluation-harness, separated by commas."),
    ] = None,
    lm_eval_path: Annotated[
        Path | None,
        typer.Option("--lm-eval-path", metavar="DIR", help="Folder of the task files. Code in them is run."),
    ] = None,
    shots: Annotated[int | None, typer.Option("--shots", min=0, help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most questions per task.")] = None,
    memory_budget: MemoryBudget = None,
    cache_dir: CacheDir = None,
    cache_limit: CacheLimit = DEFAULT_CACHE_LIMIT,
    scratch_dir: ScratchDir = None,
    verify: VerifyWeights = Verify.ONCE,
    key: Key = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Evaluate a state on labelled texts, plain texts or a benchmark.

    Accuracy and macro-F1 of a classifier, perplexity of a language model, or the scores of a benchmark.
    """
    chosen = choose_subject(data, benchmark, lm_eval, lm_eval_path)
    if (shots, limit) != (None, None) and benchmark is None and lm_eval is None:
        raise UsageProblem("--shots and --limit are for benchmarks", hint="name one with --benchmark or --lm-eval")
    cache = cache_directory(cache_dir, cache_limit)
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.session import Machine

    machine = Machine(
        model, memory_budget_bytes=memory_budget, verify=verify.value, cache=cache, scratch_dir=scratch_dir
    )
    inputs: dict[str, Any] = {"machine": machine, "plan": plan, "state": state, "out": out, "force": force, **chosen}
    inputs |= {"signer": open_key(key), "say": console.say}
    with console.progress() as progress:
        if lm_eval is not None:
            from stages.harness import run as run_harness

            say_scores(console, run_harness(**inputs, shots=shots, limit=limit, progress=progress))
        elif benchmark is not None:
            from stages.benchmark import run as run_benchmark

            say_scores(console, run_benchmark(**inputs, shots=shots, limit=limit, progress=progress))
        else:
            from stages.eval import run

            say_evaluation(console, run(**inputs, progress=progress))
            console.say_left_out(chosen["data"])


def choose_subject(
    data: Path | None, benchmark: Benchmark | None, lm_eval: str | None, lm_eval_path: Path | None
) -> dict[str, Any]:
    """The arguments that say what to evaluate on.  Raises `UsageProblem`."""
    if lm_eval is not None:
        if lm_eval_path is None or data is not None or benchmark is not None:
            raise UsageProblem(
                "--lm-eval needs --lm-eval-path, and excludes --data and --benchmark",
                hint="name the folder of the task files",
            )
        return {"tasks": [task.strip() for task in lm_eval.split(",") if task.strip()], "tasks_dir": lm_eval_path}
    if data is None:
        raise UsageProblem("there is nothing to evaluate on", values={"expected": "--data PATH, or --lm-eval TASKS"})
    return {"data": data, **({"benchmark": benchmark.value} if benchmark else {})}


def say_scores(console: Console, artifact: "Artifact[BenchmarkManifest]") -> None:
    """Print each metric, overall and by group."""
    manifest = artifact.manifest
    for score in manifest.scores:
        value, macro = score.overall, score.macro
        console.say(
            f"{manifest.benchmark}: {score.metric} {value.value:.4f} (95 %: {value.low:.4f} to {value.high:.4f}) on "
            f"{manifest.example_count} questions; mean of {len(score.groups)} groups {macro.value:.4f}"
        )
        if len(score.groups) > 1:
            console.table(("", "questions", score.metric), [(one.name, one.count, one.value) for one in score.groups])
    if manifest.truncated_count:
        console.say(
            f"{manifest.truncated_count} prompts were truncated at their beginning: "
            "they are longer than the model's window"
        )
    scores = [score.model_dump() for score in manifest.scores]
    console.result(path=artifact.path, digest=artifact.digest, round=manifest.round, scores=scores)


def say_evaluation(console: Console, artifact: "Artifact[EvaluationManifest | PerplexityManifest]") -> None:
    """Print accuracy, macro-F1 and the confusion matrix, or perplexity."""
    from schemas.evaluation import EvaluationManifest

    manifest, counts = artifact.manifest, console.say_truncated(artifact)
    common = {"path": artifact.path, "digest": artifact.digest, "round": manifest.round, "texts": counts}
    if not isinstance(manifest, EvaluationManifest):
        value = manifest.perplexity
        console.say(f"perplexity {value.value:.4f} (95 %: {value.low:.4f} to {value.high:.4f})")
        console.say(f"loss {manifest.loss.value:.4f} nats per token, {manifest.token_count} tokens")
        console.result(**common, perplexity=value.model_dump(), loss=manifest.loss.model_dump())
        return
    for name, estimate in (("accuracy", manifest.accuracy), ("macro-F1", manifest.macro_f1)):
        console.say(f"{name} {estimate.value:.4f} (95 %: {estimate.low:.4f} to {estimate.high:.4f})")
    behind = "rows true, columns predicted:" if manifest.confusion else "of so many labels no confusion matrix is kept"
    console.say(f"loss {manifest.loss:.4f} on {manifest.example_count} texts; {behind}")
    if manifest.confusion:
        rows = [(label, *counted) for label, counted in zip(manifest.labels, manifest.confusion, strict=True)]
        console.table(("", *manifest.labels), rows)
    console.result(
        **common,
        accuracy=manifest.accuracy.model_dump(),
        macro_f1=manifest.macro_f1.model_dump(),
        loss=manifest.loss,
        confusion=manifest.confusion,
    )
