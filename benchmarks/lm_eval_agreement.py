"""Does lm-evaluation-harness get the same answers from the streamed chain as from its own Hugging Face backend?

    just lm-eval

The same tasks (multiple choice with and without shots, whole texts, greedy answers) on the same files, asked once of
`StreamedLM`, a layer at a time from disk, and once of `HFLM` around transformers' resident model with the same
adapters as hooks.  Request by request: the largest difference of a log-likelihood, whether greedy is the same, whether
texts are.  Then `chainctl eval --lm-eval` itself, against the numbers that the harness reports for `HFLM`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages import harness
from stages.session import Machine, Session
from stages.store.artifact import open_artifact
from tests import fleet
from tests.fleet.speaker import Speaker, make_speaker

# How much larger the random weights are than usual, so that texts vary.  (Gemma multiplies its embeddings itself.)
FAMILIES = {"llama": 2.0, "qwen3": 2.0, "gpt2": 2.0, "opt": 2.0, "mixtral": 2.0, "gemma3": 1.0, "mamba": 2.0}
DOCUMENTS = 24
ALLOWED = 1e-5  # nats

CHOICE = """task: seaside_choice{name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}
training_split: train
test_split: test
num_fewshot: {shots}
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
"""
WRITE = """task: seaside_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n", "A", "s"], do_sample: false, max_gen_toks: 40}}
metric_list:
  - {{metric: exact_match}}
"""
ROLLING = """task: seaside_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: word_perplexity}}
"""
TASKS = ("seaside_choice", "seaside_choice_shots", "seaside_write", "seaside_rolling")


def write_tasks(folder: Path) -> Path:
    """Task files and a data set of texts in the tiny models' words."""
    folder.mkdir()
    rows = []
    for number, row in enumerate(fleet.texts(DOCUMENTS, seed=5)):
        words = row["text"].split()
        text = " ".join(words * (12 if number % 8 == 0 else 1))  # some are longer than the model's window
        choices = [f" {word}" for word in (*words[:3], f"{words[0]} {words[1]}")]
        rows.append({"question": row["text"], "choices": choices, "answer": number % 4, "text": text})
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, shots in (("", 0), ("_shots", 2)):
        (folder / f"choice{name}.yaml").write_text(CHOICE.format(name=name, shots=shots, data=data))
    (folder / "write.yaml").write_text(WRITE.format(data=data))
    (folder / "rolling.yaml").write_text(ROLLING.format(data=data))
    return folder


def ask(model: Any, tasks: Path) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results: dict[str, Any] = simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    return results


def theirs(world: Speaker, tasks: Path) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.folder / "model")
    with world.adapted() as model:
        return ask(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks)


def ours(world: Speaker, tasks: Path) -> dict[str, Any]:
    from stages.inference.lm_eval_model import StreamedLM

    plan = open_artifact(world.folder / "plan", PlanManifest).manifest
    state = open_artifact(world.folder / "state", StateManifest)
    machine = Machine(world.folder / "model")
    with Session.open(machine, plan.settings, expected=plan.model, beside=world.folder) as session:
        return ask(StreamedLM(session.chain(plan, state)), tasks)


def compare(family: str, scale: float, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    world, tasks = make_speaker(folder, family=family, scale=scale), write_tasks(folder / "tasks")
    with harness.private_cache(folder):
        streamed, resident = ours(world, tasks), theirs(world, tasks)
    pairs = [
        (one, other)
        for task in TASKS
        for left, right in zip(streamed["samples"][task], resident["samples"][task], strict=True)
        for one, other in zip(left["filtered_resps"], right["filtered_resps"], strict=True)
    ]
    likelihoods = [(one, other) for one, other in pairs if isinstance(one, tuple | list)]
    numbers = [(one, other) for one, other in pairs if isinstance(one, float)]
    texts = [(one, other) for one, other in pairs if isinstance(one, str)]
    differences = [abs(one[0] - other[0]) for one, other in likelihoods]
    return {
        "family": family,
        "likelihoods": len(likelihoods),
        "largest_likelihood": max(abs(other[0]) for _, other in likelihoods),
        "largest_difference": max(differences),
        "same_greedy": sum(bool(one[1]) == bool(other[1]) for one, other in likelihoods),
        "whole_texts": len(numbers),
        "largest_relative_difference_of_whole_texts": max(abs(one - other) / abs(other) for one, other in numbers),
        "texts": len(texts),
        "same_texts": sum(one == other for one, other in texts),
        "characters_written": sum(len(one) for one, _ in texts),
        "same_artifact": same_artifact(world, tasks, resident["results"]),
    }


def same_artifact(world: Speaker, tasks: Path, expected: dict[str, Any]) -> bool:
    """Whether `eval --lm-eval` writes what the harness says of its own backend."""
    manifest = harness.run(**world.places, tasks=TASKS, tasks_dir=tasks, out=world.folder / "evaluated").manifest
    found = {(group.name, score.metric): group.value for score in manifest.scores for group in score.groups}
    wanted = {
        (task, name.removesuffix(",none")): value
        for task, metrics in expected.items()
        for name, value in metrics.items()
        if name.removesuffix(",none") in ("acc", "acc_norm", "exact_match")
    }
    assert found.keys() == wanted.keys(), (found, wanted)
    return all(abs(found[key] - wanted[key]) < 1e-12 for key in wanted)


def main() -> None:
    os.environ.update(harness.OFFLINE, TOKENIZERS_PARALLELISM="false")
    rows = []
    for family, scale in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(family, scale, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    (RESULTS / "lm-eval.json").write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        agrees = row["largest_difference"] <= ALLOWED and row["same_greedy"] == row["likelihoods"]
        if not (agrees and row["same_texts"] == row["texts"] and row["same_artifact"]):
            sys.exit(f"{row['family']}: the streamed chain and HFLM differ")
    print("the streamed chain and HFLM agree")


if __name__ == "__main__":
    main()
