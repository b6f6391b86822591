"""A fine-tuned classifier as base model, through the stages: it goes on from its head, or begins a fresh one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from schemas.evaluation import EvaluationManifest
from schemas.methods import default_settings
from schemas.plan import PlanManifest
from schemas.settings import Settings
from schemas.state import StateManifest
from stages import import_model
from stages.export.export import run as export
from stages.model_info import lines, look
from stages.store.artifact import open_artifact, read_tensors
from tests import fleet

LABELS = ("tide", "root", "moss")
OTHER_ORDER = ("moss", "tide", "root")
HEADS = {
    "bert": ("classifier.bias", "classifier.weight"),
    "roberta": ("classifier.out_proj.bias", "classifier.out_proj.weight"),
    "llama": ("score.weight",),
}


def save(directory: Path, family: str, labels: tuple[str, ...], **changes: Any) -> None:
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: row for row, label in enumerate(labels)},
    }
    fleet.save_model(directory, family, factory=AutoModelForSequenceClassification, **names, **changes)


def rows() -> list[dict[str, str]]:
    return [row | {"label": LABELS[index % 3]} for index, row in enumerate(fleet.texts(18))]


def chosen(method: str = "full-adapters") -> Settings:
    settings = fleet.settings(task={"labels": LABELS}, head={"form": "transformers"})
    return settings if method == "chain" else settings.model_copy(update={"chain": default_settings(method)})


def begin(folder: Path, family: str, labels: tuple[str, ...], settings: Settings) -> tuple[Path, Path]:
    """A model with a head for `labels`, texts, and a plan with state 0."""
    save(folder / "model", family, labels)
    data = fleet.save_texts(folder / "data.jsonl", rows())
    fleet.begin(folder, folder / "model", data, settings)
    return folder / "model", data


@torch.no_grad()
def own_logits(directory: Path) -> Tensor:
    """What transformers answers to the texts, a column for each label of the plan."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    encoded = tokenizer([row["text"] for row in rows()], padding=True, return_tensors="pt")
    answers: Tensor = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    return answers[:, [model.config.label2id[label] for label in LABELS]]


def evaluated(folder: Path, model: Path, data: Path, state: str) -> EvaluationManifest:
    manifest = fleet.run_eval(folder, model, data, folder / f"eval-{state}", state=state).manifest
    assert isinstance(manifest, EvaluationManifest)
    return manifest


def confusion(logits: Tensor) -> tuple[tuple[int, ...], ...]:
    counts = np.zeros((3, 3), int)
    for row, predicted in zip(rows(), logits.argmax(1).tolist(), strict=True):
        counts[LABELS.index(row["label"]), predicted] += 1
    return tuple(tuple(int(count) for count in line) for line in counts)


@pytest.mark.parametrize("method", ["chain", "full-adapters", "linear-probe", "no-ft"])
@pytest.mark.parametrize("labels", [LABELS, OTHER_ORDER, ("a", "b"), ("LABEL_0", "LABEL_1", "LABEL_2"), tuple("abcde")])
def test_every_method_trains_the_head_whatever_the_checkpoint_has(
    labels: tuple[str, ...], method: str, tmp_path: Path
) -> None:
    model, data = begin(tmp_path, "bert", labels, chosen(method))
    plan = open_artifact(tmp_path / "plan", PlanManifest).manifest
    start = "checkpoint" if set(labels) == set(LABELS) else "other-labels"
    assert [(one.name, one.start) for one in plan.head_parameters] == [(name, start) for name in HEADS["bert"]]
    before = read_tensors(open_artifact(tmp_path / "state", StateManifest), "head.")
    assert before["head.classifier.weight"].shape == (3, fleet.WIDTH)
    if method != "no-ft":
        update = fleet.run_train(tmp_path, model, data, tmp_path / "update")
        assert set(before) <= {one.name for one in update.manifest.tensors}
        fleet.run_aggregate([tmp_path / "update"], tmp_path / "plan", tmp_path / "state", tmp_path / "next")
        after = read_tensors(open_artifact(tmp_path / "next", StateManifest), "head.")
        assert all(not np.array_equal(after[name], before[name]) for name in before)
        assert evaluated(tmp_path, model, data, "next").labels == LABELS
    assert evaluated(tmp_path, model, data, "state").labels == LABELS


@pytest.mark.parametrize("family", HEADS)
def test_state_0_holds_the_rows_of_the_file_and_answers_as_transformers_does(family: str, tmp_path: Path) -> None:
    model, data = begin(tmp_path, family, OTHER_ORDER, chosen())
    own = AutoModelForSequenceClassification.from_pretrained(model)
    columns = [OTHER_ORDER.index(label) for label in LABELS]
    held = read_tensors(open_artifact(tmp_path / "state", StateManifest), "head.")
    assert set(held) == {f"head.{name}" for name in HEADS[family]}
    for name in HEADS[family]:
        assert np.array_equal(held[f"head.{name}"], own.get_parameter(name).detach().numpy()[columns])
    found, expected = evaluated(tmp_path, model, data, "state"), own_logits(model)
    targets = torch.tensor([LABELS.index(row["label"]) for row in rows()])
    assert found.confusion == confusion(expected)
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(expected, targets)), abs=1e-5)


@pytest.mark.parametrize("family", HEADS)
def test_an_export_has_the_labels_and_the_rows_in_the_order_of_the_plan(family: str, tmp_path: Path) -> None:
    model, _ = begin(tmp_path, family, OTHER_ORDER, chosen())
    out = tmp_path / "out"
    export(model_dir=model, plan=tmp_path / "plan", state=tmp_path / "state", out=out, format="hf")
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {str(row): label for row, label in enumerate(LABELS)}
    assert config["label2id"] == {label: row for row, label in enumerate(LABELS)}
    assert (own_logits(out) - own_logits(model)).abs().max() <= 1e-5  # fresh adapters change nothing


def test_an_export_keeps_nothing_of_another_task_of_the_checkpoint(tmp_path: Path) -> None:
    """A checkpoint with several labels per text scores each by itself; a plan has one label per text."""
    save(tmp_path / "model", "bert", tuple("abcde"), problem_type="multi_label_classification")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_labels": 5}))
    fleet.begin(tmp_path, tmp_path / "model", fleet.save_texts(tmp_path / "data.jsonl", rows()), chosen())
    out = tmp_path / "out"
    export(model_dir=tmp_path / "model", plan=tmp_path / "plan", state=tmp_path / "state", out=out, format="hf")
    loaded = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
    assert (loaded.config.num_labels, loaded.config.problem_type) == (3, None)


def test_plan_and_model_info_say_where_the_head_begins(tmp_path: Path) -> None:
    for labels, said in (
        (OTHER_ORDER, "start from the checkpoint, in the order of the plan's labels"),
        (("a", "b"), "start fresh, for the checkpoint's head has other labels"),
    ):
        folder = tmp_path / labels[0]
        model, _ = begin(folder, "bert", labels, chosen())
        recipe = fleet.write_recipe(folder / "recipe.toml", chosen())
        for explain in ((), ("--explain",)):
            arguments = (folder / "profile", "--model", model, "--recipe", recipe, *explain)
            planned = fleet.chainctl("plan", *arguments, "--out", folder / "plan", "--state", folder / "state")
            assert f"Head: classifier.bias, classifier.weight {said}" in planned.stdout
        info = fleet.chainctl("model", "info", model, "--recipe", recipe).stdout
        assert f"{len(labels)} labels: {', '.join(labels)}" in info
        assert said in info


def test_a_simulation_says_it_too(tmp_path: Path) -> None:
    save(tmp_path / "model", "bert", tuple("abcde"))
    data = fleet.save_texts(tmp_path / "data.jsonl", rows())
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", chosen())
    arguments = ("--model", tmp_path / "model", "--data", data, "--test", data, "--recipe", recipe, "--devices", 2)
    done = fleet.chainctl("simulate", *arguments, "--iid", "--rounds", 1, "--out", tmp_path / "run")
    assert "Head: classifier.bias, classifier.weight start fresh, for the checkpoint's head has other" in done.stdout


@pytest.mark.parametrize("family", HEADS)
def test_a_classifier_is_imported_whole(family: str, tmp_path: Path) -> None:
    """A decoder that classifies has no language head, and lacks none."""
    save(tmp_path / "model", family, LABELS, tie_word_embeddings=False)
    import_model.run(tmp_path / "model", tmp_path / "imported")
    info = look(tmp_path / "imported", chosen())
    assert (info.stored_labels, info.missing) == (LABELS, ())
    assert info.head[0].endswith("from the checkpoint, in the order of the plan's labels")


def test_a_device_profiles_before_there_are_labels(tmp_path: Path) -> None:
    save(tmp_path / "model", "bert", tuple("abcde"))
    data = fleet.save_texts(tmp_path / "data.jsonl", rows())
    unlabelled = fleet.settings(task={"labels": ()}, head={"form": "transformers"})
    fleet.run_profile(tmp_path / "model", data, unlabelled, tmp_path / "profile")
    fleet.run_plan([tmp_path / "profile"], tmp_path / "model", chosen(), tmp_path / "plan", tmp_path / "state")


def test_model_info_without_labels_says_what_decides(tmp_path: Path) -> None:
    save(tmp_path, "bert", LABELS)
    info = look(tmp_path, fleet.settings(task={"labels": ()}, head={"form": "transformers"}))
    assert info.stored_labels == LABELS
    assert any("a plan with the same labels starts from it" in line for line in lines(info))
