"""Harness stage: how well does a state perform on tasks of lm-evaluation-harness?

Chain:  profile -> plan -> train-window -> aggregate -> [eval --lm-eval]
Reads:  plan and state artifacts of a causal-lm task, the base model, a folder of task files, and the data they name.
Writes: a benchmark artifact: each metric of the harness over all tasks, as their mean, and task by task.

Nothing is downloaded: only the folder's tasks are known, and data sets must be on disk (`dataset_path: json` and
`data_files`).  A task file may name Python functions in files beside it; the harness runs them, so use only folders
that you trust.  While it runs, the harness caches texts in the scratch folder; that cache is deleted afterwards.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.base import canonical_json
from schemas.benchmark import BenchmarkManifest
from schemas.errors import BadInput, ChainError
from stages.inference.full_chain import FullChain, require_causal_lm
from stages.process import intent
from stages.process.progress import Progress, Say, silent, unsaid
from stages.session import Machine, Session
from stages.store.artifact import Artifact, check_place, existing, new_artifact
from stages.store.signing import Signer
from stages.store.trust import open_trusted
from stages.suites.suite import Marked, summarise

BENCHMARK = "lm-eval"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

Sample = dict[str, Any]


def run(
    *,
    machine: Machine,
    plan: Path,
    state: Path,
    tasks: Sequence[str],
    tasks_dir: Path,
    out: Path,
    shots: int | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    signer: Signer | None = None,
    say: Say = unsaid,
) -> Artifact[BenchmarkManifest]:
    """Run the harness on one state, with the first `limit` documents of each task in `tasks_dir` (None: all).

    `shots` None: as the tasks say; `say` is told what an emulated dtype costs here.  Raises `BadInput`,
    `NotTrusted`, `DoesNotFit`, `UsageProblem`.
    """
    planned, current = open_trusted(plan, state)
    settings = require_causal_lm(planned.manifest)
    if not tasks_dir.is_dir():
        raise BadInput(f"{tasks_dir} is not a folder of task files", values={"expected": "YAML files of lm-eval"})
    check_place(out, BenchmarkManifest, machine.model_dir, plan, state, tasks_dir, force=force, signer=signer)
    existing(out, BenchmarkManifest, same=lambda there: there.state == current.digest, force=force, signer=signer)
    expected = planned.manifest.model
    opened = Session.open(machine, settings, expected=expected, beside=out.parent, progress=progress, say=say)
    with opened as session:
        chain = session.chain(planned.manifest, current)
        intent.will_read(tasks_dir, "tasks")
        intent.begin(out)
        with private_cache(session.scratch):
            samples = ask(chain, tasks, tasks_dir, shots=shots, limit=limit)
    manifest = BenchmarkManifest(
        plan=planned.digest,
        state=current.digest,
        round=current.manifest.round,
        data=samples_digest(samples),
        benchmark=BENCHMARK,
        shots=shots,
        limit=limit,
        example_count=sum(len({sample["doc_id"] for sample in found}) for found in samples.values()),
        truncated_count=chain.truncated_count,
        scores=summarise(list(marked(samples))),
    )
    there = existing(out, BenchmarkManifest, same=lambda there: there == manifest, force=force, signer=signer)
    if there is not None:
        return there
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.finish(manifest, session.measured(predicted=chain.predicted_peak_bytes))
    return Artifact(out, manifest, manifest.digest)


def ask(
    chain: FullChain, tasks: Sequence[str], tasks_dir: Path, *, shots: int | None, limit: int | None
) -> dict[str, list[Sample]]:
    """The samples that the harness logs for each document, by task.  Raises `BadInput`."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from stages.inference.lm_eval_model import StreamedLM
    except ImportError:
        raise BadInput("lm-evaluation-harness is not installed", hint="pip install 'chainctl[eval]'") from None
    manager = TaskManager(include_path=str(tasks_dir), include_defaults=False)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise BadInput(
            f"{tasks_dir} has no task {unknown[0]!r}",
            values={"expected": ", ".join(sorted(manager.all_tasks)) or "task files", "found": ", ".join(tasks)},
        )
    try:
        results = simple_evaluate(
            model=StreamedLM(chain),
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
        )
    except ChainError:
        raise
    except Exception as error:  # from the harness, a template or the folder's functions; its message may hold a text
        raise BadInput(
            "lm-evaluation-harness could not run these tasks",
            values={"tasks": ", ".join(tasks), "reason": type(error).__name__},
            hint="try the task files with the lm-eval command and a small model",
        ) from None
    assert results is not None
    return dict(results["samples"])


def marked(samples: dict[str, list[Sample]]) -> Iterator[Marked]:
    """The scores in [0, 1] of each document.  Each filter of the harness gives a metric of its own.

    Raises `BadInput` if there are none: the artifact cannot hold perplexities and the like.
    """
    found = False
    for task, documents in sorted(samples.items()):
        for sample in documents:
            suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
            scores = {f"{name}{suffix}": sample[name] for name in sample["metrics"] if _is_share(sample[name])}
            found |= bool(scores)
            yield Marked(task, {name: float(value) for name, value in scores.items()})
    if not found:
        raise BadInput(
            "the tasks have no metric between 0 and 1",
            values={"tasks": ", ".join(sorted(samples)), "expected": "acc, exact_match, f1 and the like"},
        )


def _is_share(value: object) -> bool:
    return isinstance(value, bool | int | float) and 0 <= value <= 1


def samples_digest(samples: dict[str, list[Sample]]) -> str:
    """SHA-256 over the harness' own hashes of each document, prompt and target."""
    digest = hashlib.sha256(canonical_json(["chainctl benchmark", BENCHMARK]))
    for task, documents in sorted(samples.items()):
        for sample in documents:
            digest.update(canonical_json([task, sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]]))
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def private_cache(folder: Path) -> Iterator[None]:
    """No network, and a data set cache in `folder` that is deleted afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in (*OFFLINE, "HF_DATASETS_CACHE")}
    with tempfile.TemporaryDirectory(prefix=".lm-eval-", dir=folder) as cache:
        os.environ.update(OFFLINE, HF_DATASETS_CACHE=cache)
        try:
            import datasets

            datasets.config.HF_DATASETS_CACHE = Path(cache)
            datasets.config.HF_DATASETS_OFFLINE = True
        except ImportError:
            pass  # reported where the harness is imported
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
