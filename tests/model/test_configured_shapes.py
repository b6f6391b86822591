"""Weights are compared with the configuration from headers alone, and our verdict is transformers' own.

Each stored tensor in turn is dropped, or stored in another shape.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from schemas.errors import BadInput, ChainError
from schemas.settings import HeadForm
from stages import import_model
from stages.doctor import examine
from stages.model.language_head import LanguageHead
from stages.model_info import look
from stages.streaming.check import SETTINGS
from stages.streaming.whole import check_whole
from stages.weights.files import WeightFiles
from tests import fleet

PUBLISHED = {
    "bert": AutoModelForMaskedLM,
    "roberta": AutoModel,
    "distilbert": AutoModelForMaskedLM,
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "mixtral": AutoModelForCausalLM,
    "mamba": AutoModelForCausalLM,
    "gemma2": AutoModelForCausalLM,
}
Tensors = dict[str, torch.Tensor]


def save(directory: Path, family: str, factory: Any, **changes: Any) -> Tensors:
    """A model of one layer; its stored tensors."""
    few: dict[str, Any] = {"num_local_experts": 2} if family == "mixtral" else {}
    layers: dict[str, Any] = {"layer_types": ["full_attention"]} if family == "gemma2" else {}
    fleet.save_model(directory, family, factory=factory, num_hidden_layers=1, **few, **layers, **changes)
    stored: Tensors = load_file(directory / "model.safetensors")
    return stored


def store(directory: Path, tensors: Tensors) -> None:
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def damaged(tensors: Tensors) -> dict[str, Tensors]:
    """Each tensor dropped, with one row more, and with one dimension more."""
    cases: dict[str, Tensors] = {}
    for name, value in tensors.items():
        others = {key: its for key, its in tensors.items() if key != name}
        cases[f"without {name}"] = others
        cases[f"{name} longer"] = others | {name: torch.cat([value, value[:1]])}
        cases[f"{name} in three dimensions"] = others | {name: value[None, None]}
    return cases


def transformers_refuses(directory: Path, factory: Any) -> bool:
    """Whether transformers raises, or makes up a parameter that the file lacks."""
    try:
        _, report = factory.from_pretrained(directory, output_loading_info=True)
    except RuntimeError:
        return True
    return bool(report["missing_keys"])


def refuses(opens: Callable[[], object]) -> bool:
    try:
        opens()
    except BadInput:
        return True
    return False


@pytest.mark.parametrize("family", PUBLISHED)
def test_each_tensor_dropped_or_in_another_shape_is_judged_as_transformers_does(family: str, tmp_path: Path) -> None:
    factory = PUBLISHED[family]
    tensors = save(tmp_path, family, factory)
    assert not transformers_refuses(tmp_path, factory)
    assert not refuses(lambda: check_whole(tmp_path))
    for case, stored in damaged(tensors).items():
        store(tmp_path, stored)
        assert refuses(lambda: check_whole(tmp_path)) == transformers_refuses(tmp_path, factory), case
        if factory is AutoModelForCausalLM:
            opens = lambda: fleet.open_backbone(tmp_path, SETTINGS["language-model"])  # noqa: E731
            assert refuses(opens) == transformers_refuses(tmp_path, factory), case


@pytest.mark.parametrize("form", ["transformers", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_a_classifier_is_refused_where_it_lacks_what_would_not_train(
    family: str, form: HeadForm, tmp_path: Path
) -> None:
    tensors = save(tmp_path, family, AutoModel)
    for name in tensors:
        store(tmp_path, {key: value for key, value in tensors.items() if key != name})
        trains = "pooler" in name or (form == "transformers" and name in ("norm.weight", "ln_f.weight", "ln_f.bias"))
        assert refuses(lambda: fleet.open_backbone(tmp_path, SETTINGS[form])) is not trains, name


@pytest.mark.parametrize("labels", [2, 5])
def test_a_head_for_other_labels_does_not_refuse_a_model(labels: int, tmp_path: Path) -> None:
    save(tmp_path, "bert", AutoModelForSequenceClassification, num_labels=labels)
    fleet.open_backbone(tmp_path, SETTINGS["transformers"])
    check_whole(tmp_path)


def test_a_head_that_is_not_of_the_labels_is_compared(tmp_path: Path) -> None:
    tensors = save(tmp_path, "roberta", AutoModelForSequenceClassification)
    dense = "classifier.dense.weight"
    store(tmp_path, tensors | {dense: torch.cat([tensors[dense]] * 2)})
    with pytest.raises(BadInput, match=dense.replace(".", r"\.")):
        fleet.open_backbone(tmp_path, SETTINGS["transformers"])


def test_masks_that_older_files_hold_are_left_out(tmp_path: Path) -> None:
    tensors = save(tmp_path, "gpt2", AutoModelForCausalLM)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    store(tmp_path, tensors | mask)
    fleet.open_backbone(tmp_path, SETTINGS["language-model"])
    store(tmp_path, tensors | mask | {"transformer.h.0.attn.other_bias": torch.ones(8)})
    with pytest.raises(BadInput, match="does not know"):
        fleet.open_backbone(tmp_path, SETTINGS["language-model"])


def test_a_language_head_that_is_missing_is_not_the_embeddings(tmp_path: Path) -> None:
    tensors = save(tmp_path, "llama", AutoModelForCausalLM, tie_word_embeddings=False)
    del tensors["lm_head.weight"]
    store(tmp_path, tensors)
    with pytest.raises(BadInput, match=r"lm_head\.weight"):
        fleet.open_backbone(tmp_path, SETTINGS["language-model"])
    with pytest.raises(BadInput, match=r"lm_head\.weight") as caught:
        import_model.run(tmp_path, tmp_path / "imported")
    assert look(tmp_path, fleet.settings()).missing == ("lm_head.weight",)
    assert 'set "tie_word_embeddings": true' in caught.value.hint
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    fleet.open_backbone(tmp_path, SETTINGS["language-model"])
    import_model.run(tmp_path, tmp_path / "imported")


def test_of_two_tied_tables_either_is_both(tmp_path: Path) -> None:
    tensors = save(tmp_path, "llama", AutoModelForCausalLM, tie_word_embeddings=True)
    wanted = fleet.open_backbone(tmp_path, SETTINGS["language-model"])
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")  # as safetensors' save_model() keeps them
    store(tmp_path, tensors)
    assert not transformers_refuses(tmp_path, AutoModelForCausalLM)
    check_whole(tmp_path)
    found = fleet.open_backbone(tmp_path, SETTINGS["language-model"])
    with torch.no_grad():
        assert torch.equal(found.embed(fleet.batch()), wanted.embed(fleet.batch()))
    heads = [LanguageHead.of(backbone, resident=True).resident for backbone in (wanted, found)]
    assert torch.equal(*heads)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("bert", True)])
def test_resized_embeddings_are_refused_everywhere_and_the_hint_works(family: str, tied: bool, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family, factory=PUBLISHED[family], tie_word_embeddings=tied)
    path = tmp_path / "config.json"
    before = json.loads(path.read_text())
    model.resize_token_embeddings(before["vocab_size"] + 7)
    model.save_pretrained(tmp_path)
    path.write_text(json.dumps(before))
    opens = (
        lambda: fleet.open_backbone(tmp_path),
        lambda: look(tmp_path, fleet.settings()),
        lambda: examine(tmp_path, fleet.settings()),
        lambda: import_model.run(tmp_path, tmp_path / "imported"),
    )
    for open_it in opens:
        with pytest.raises(BadInput) as caught:
            open_it()
        assert f"config.json  [{before['vocab_size']}" in str(caught.value)
        assert f"stored       [{before['vocab_size'] + 7}" in str(caught.value)
    rows = caught.value.hint.split('"vocab_size": ')[1].split()[0]
    path.write_text(json.dumps(before | {"vocab_size": int(rows)}))
    for open_it in opens:
        open_it()


def test_experts_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    tensors = save(tmp_path, "mixtral", AutoModelForCausalLM)
    expert = next(name for name in tensors if ".experts." in name)
    for stored in (
        {key: value for key, value in tensors.items() if key != expert},
        tensors | {expert: tensors[expert][1:]},
    ):
        store(tmp_path, stored)
        with pytest.raises(BadInput, match="experts"):
            fleet.open_backbone(tmp_path, SETTINGS["language-model"])


def test_no_weight_is_read_to_compare_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = save(tmp_path, "llama", AutoModelForCausalLM)
    store(tmp_path, tensors | {"model.norm.weight": torch.ones(3)})
    read: list[str] = []
    monkeypatch.setattr(WeightFiles, "read_into", lambda _, tensor, *__, **___: read.append(tensor.name))
    with pytest.raises(ChainError, match="another shape"):
        fleet.open_backbone(tmp_path)
    assert read == []
