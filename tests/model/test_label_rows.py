"""A checkpoint with a classification head: what has a row for each label trains, and starts where the labels agree.

The oracle is transformers' own classifier, saved and loaded by transformers.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from schemas.errors import BadInput
from schemas.head import HeadParameter, described_head
from stages.model.architecture import empty_model
from stages.model.backbone import Backbone
from stages.model.label_rows import label_parameters, row_order
from stages.streaming.check import TOLERANCE
from tests import fleet

LABELS = ("tide", "root", "moss")
BY_LABEL = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    "distilbert": {"classifier.weight", "classifier.bias"},
    "modernbert": {"classifier.weight", "classifier.bias"},
    "llama": {"score.weight"},
    "gpt2": {"score.weight"},
    "opt": {"score.weight"},
    "mixtral": {"score.weight"},
}
FROZEN = {  # of the head, and in the file
    "bert": "bert.pooler.dense.weight",
    "roberta": "classifier.dense.weight",
    "distilbert": "pre_classifier.weight",
    "modernbert": "head.dense.weight",
}


def save(directory: Path, family: str, labels: tuple[str, ...]) -> Any:
    """A classifier with a head for `labels`, in that order."""
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: row for row, label in enumerate(labels)},
    }
    return fleet.save_model(directory, family, factory=AutoModelForSequenceClassification, **names)


def open_for(directory: Path, labels: tuple[str, ...], **sections: dict[str, Any]) -> Backbone:
    chosen = fleet.settings(task={"labels": labels}, head={"form": "transformers"}, **sections)
    return fleet.open_backbone(directory, chosen)


@torch.no_grad()
def logits(backbone: Backbone) -> Tensor:
    batch = fleet.batch()
    return backbone.head(fleet.stream(backbone, batch, {}), batch, backbone.initial_head)


@pytest.mark.parametrize("family", BY_LABEL)
@pytest.mark.parametrize("stored", [("tide", "root", "moss"), ("moss", "tide", "root")], ids=["same", "other order"])
@torch.no_grad()
def test_a_head_for_the_same_labels_answers_as_in_transformers(
    family: str, stored: tuple[str, ...], tmp_path: Path
) -> None:
    save(tmp_path, family, stored)
    backbone, batch = open_for(tmp_path, LABELS), fleet.batch()
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    answers = own(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    columns = [own.config.label2id[label] for label in LABELS]
    assert (logits(backbone) - answers[:, columns]).abs().max() <= TOLERANCE
    assert backbone.initial_head.keys() == BY_LABEL[family]
    for name, value in backbone.initial_head.items():
        assert torch.equal(value, own.get_parameter(name)[columns])
    assert set(backbone.head_starts.values()) == {"checkpoint"}
    assert backbone.stored_labels == stored


@pytest.mark.parametrize("family", FROZEN)
def test_what_the_file_has_beside_them_is_loaded_and_stays_frozen(family: str, tmp_path: Path) -> None:
    own = save(tmp_path, family, ("one", "two"))
    backbone = open_for(tmp_path, LABELS)
    assert FROZEN[family] not in backbone.initial_head
    assert torch.equal(backbone.skeleton.model.get_parameter(FROZEN[family]), own.get_parameter(FROZEN[family]))


@pytest.mark.parametrize(
    "stored",
    [
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("tide", "root"),
        ("tide", "root", "Moss"),
        ("tide", "root", "root"),
        ("tide", "root", "moss", "bark", "gull"),
        ("tide",),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_head_for_other_labels_is_as_fresh_as_none(family: str, stored: tuple[str, ...], tmp_path: Path) -> None:
    own = save(tmp_path / "tuned", family, stored)
    own.base_model.save_pretrained(tmp_path / "base")
    fleet.save_tokenizer(tmp_path / "base")
    tuned, base = (open_for(tmp_path / name, LABELS) for name in ("tuned", "base"))
    for name in BY_LABEL[family]:
        assert torch.equal(tuned.initial_head[name], base.initial_head[name])
        assert (tuned.head_starts[name], base.head_starts[name]) == ("other-labels", "fresh")
    assert logits(tuned).shape == (3, 3)
    assert tuned.initial_head.keys() == BY_LABEL[family]
    assert base.stored_labels == ()


def test_what_the_file_lacks_beside_them_trains_from_fresh(tmp_path: Path) -> None:
    own = save(tmp_path, "bert", LABELS)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name and name != "classifier.bias"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = open_for(tmp_path, LABELS)
    assert backbone.head_starts == {
        "bert.pooler.dense.bias": "fresh",
        "bert.pooler.dense.weight": "fresh",
        "classifier.bias": "fresh",
        "classifier.weight": "checkpoint",
    }
    assert torch.equal(backbone.initial_head["classifier.weight"], own.classifier.weight)
    assert not backbone.initial_head["classifier.bias"].any()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_the_rows_are_not_rounded(stored: torch.dtype, compute: str, tmp_path: Path) -> None:
    own = save(tmp_path, "bert", LABELS).to(stored)
    own.save_pretrained(tmp_path)
    backbone = open_for(tmp_path, LABELS, numerics={"compute": compute})
    found = backbone.initial_head["classifier.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, own.classifier.weight.float())


def test_rows_that_contradict_the_labels_are_refused_with_both_shapes(tmp_path: Path) -> None:
    own = save(tmp_path, "bert", (*LABELS, "bark", "gull"))
    own.config.id2label = dict(enumerate(LABELS))
    own.config.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"the checkpoint's classifier\.\w+ does not have a row for each") as caught:
        open_for(tmp_path, LABELS)
    assert {"(3,)", "(5,)"} <= {str(shape) for shape in caught.value.values.values()}
    assert open_for(tmp_path, ("one", "two")).head_starts["classifier.bias"] == "other-labels"


def test_labels_that_do_not_count_from_zero_name_no_row(tmp_path: Path) -> None:
    own = save(tmp_path, "bert", LABELS)
    own.config.id2label = {row + 1: label for row, label in enumerate(LABELS)}
    own.config.save_pretrained(tmp_path)
    assert open_for(tmp_path, LABELS).head_starts["classifier.weight"] == "other-labels"


def test_a_mean_head_does_not_start_from_a_head_on_the_first_token(tmp_path: Path) -> None:
    save(tmp_path, "bert", LABELS)
    backbone = fleet.open_backbone(tmp_path, fleet.settings(task={"labels": LABELS}))
    assert backbone.head_starts == {"classifier.bias": "fresh", "classifier.weight": "fresh"}


@pytest.mark.parametrize("family", BY_LABEL)
def test_they_are_found_by_their_shape(family: str) -> None:
    model = empty_model(fleet.config_of(family), "transformers")
    assert label_parameters(model) == BY_LABEL[family]


@pytest.mark.parametrize(
    ("stored", "labels", "order"),
    [
        (("a", "b"), ("b", "a"), [1, 0]),
        (("a", "b", "c"), ("c", "a", "b"), [2, 0, 1]),
        (("a", "b"), ("a", "b", "c"), None),
        (("a", "a"), ("a", "b"), None),
        (("cafe\u0301", "b "), ("b", "caf\u00e9"), [1, 0]),  # labels of data are in NFC, without blanks around them
        (("True", "False"), ("false", "true"), [1, 0]),
        (("a", "a "), ("a", "a "), None),
        (("a",), ("a",), None),  # a head has at least two rows
        ((), (), None),
    ],
)
def test_each_label_has_its_row_or_none_has(
    stored: tuple[str, ...], labels: tuple[str, ...], order: list[int] | None
) -> None:
    assert row_order(stored, labels) == order


def test_a_head_is_described_by_where_its_parts_start() -> None:
    parts = [HeadParameter(name=name, shape=(2,), start="fresh") for name in ("pooler.bias", "pooler.weight")]
    said = described_head([*parts, HeadParameter(name="classifier.weight", shape=(2, 4), start="checkpoint")])
    assert said == [
        "pooler.bias, pooler.weight start fresh",
        "classifier.weight starts from the checkpoint, in the order of the plan's labels",
    ]
