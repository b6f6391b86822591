"""chainctl eval --benchmark and --lm-eval: what the options mean together, and what a result says."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainctl.console import Console
from schemas.errors import UsageProblem

if TYPE_CHECKING:
    from schemas.benchmark import BenchmarkManifest
    from stages.store.artifact import Artifact


class Benchmark(StrEnum):
    """Those that are read as they were published."""

    MMLU = "mmlu"
    CRASS = "crass"
    BBH = "bbh"
    DROP = "drop"
    ROUGE = "rouge"


def ask(
    benchmark: Benchmark | None,
    tasks: str | None,
    data: Path | None,
    tasks_dir: Path | None,
    **common: Any,
) -> "Artifact[BenchmarkManifest]":
    """Let the stage that was asked for ask.  Raises what it raises, and `UsageProblem`."""
    if benchmark is not None and tasks is not None:
        raise UsageProblem("one or the other", values={"expected": "--benchmark or --lm-eval", "found": "both"})
    if benchmark is not None:
        if data is None:
            raise UsageProblem("the benchmark's files are needed", values={"expected": "--data PATH"})
        from stages.benchmark import run

        return run(benchmark=benchmark.value, data=data, **common)
    if not tasks or tasks_dir is None:
        expected = "--lm-eval TASK[,TASK] --lm-eval-path DIR"
        raise UsageProblem("tasks and the folder of their files are needed", values={"expected": expected})
    from stages import harness

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    return harness.run(tasks=names, tasks_dir=tasks_dir, **common)


def say(console: Console, artifact: "Artifact[BenchmarkManifest]") -> None:
    """Each metric with its interval, and group by group."""
    manifest = artifact.manifest
    for score in manifest.scores:
        value, macro = score.overall, score.macro
        console.say(f"{score.metric} {value.value:.4f} (95 %: {value.low:.4f} to {value.high:.4f})")
        if len(score.groups) > 1:
            console.say(f"  mean of {len(score.groups)} groups {macro.value:.4f} ({macro.low:.4f} to {macro.high:.4f})")
            rows = [(group.name, group.count, f"{group.value:.4f}") for group in score.groups]
            console.table(("group", "questions", score.metric), rows)
    cut = f"; {manifest.cut_count} prompts lost their beginning" if manifest.cut_count else ""
    console.say(f"{manifest.benchmark}: {manifest.example_count} questions{cut}")
    console.result(
        path=artifact.path,
        digest=artifact.digest,
        round=manifest.round,
        benchmark=manifest.benchmark,
        example_count=manifest.example_count,
        cut_count=manifest.cut_count,
        scores=[score.model_dump() for score in manifest.scores],
    )
