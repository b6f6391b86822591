"""An exported folder loads in transformers, offline, and gives the values of the streamed model: difference 0.0."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from schemas.errors import BadInput, UsageProblem
from schemas.state import StateManifest
from stages.export.card import plain
from stages.export.export import run
from stages.export.huggingface import written_dtype
from stages.model.skeleton import Batch
from stages.store.artifact import open_artifact
from stages.tuning.tensors import SUFFIXES
from stages.weights.files import WeightFiles
from tests import fleet
from tests.fleet.federation import LANGUAGE, Federation

DECODERS = ("llama", "qwen3", "gemma3", "gpt2", "opt", "mixtral", "mamba")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@torch.no_grad()
def difference(loaded: Any, batch: Batch, expected: Tensor) -> float:
    found = loaded(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    if found.dim() == 3:
        found, expected = found[batch.attention_mask.bool()], expected[batch.attention_mask.bool()]
    return float((found - expected).abs().max())


def load(factory: Any, folder: Path) -> Any:
    loaded, report = factory.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return loaded.eval().requires_grad_(False)  # as the streamed weights: it decides which kernel some products take


@pytest.mark.parametrize(
    ("family", "dtype"),
    # Mamba's own forward keeps float32 between bfloat16 layers, the stages do not.
    [*((family, "float32") for family in DECODERS), *((family, "bfloat16") for family in DECODERS[:-1])],
)
def test_a_language_model_is_the_streamed_one(family: str, dtype: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, family, fleet.settings(**LANGUAGE, numerics={"compute": dtype}))
    done = run(**federation.inputs(), out=tmp_path / "out", format="hf")
    assert done.path == tmp_path / "out"
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    assert str(loaded.dtype) == f"torch.{dtype}"
    assert difference(loaded, *federation.answers()) == 0.0


def test_weights_are_written_as_they_are_stored_and_load_as_they_computed(tmp_path: Path) -> None:
    """bfloat16 in the files of base and export, float32 in the arithmetic of both."""

    def save(directory: Path, family: str, **options: Any) -> Any:
        return fleet.save_stored_as(directory, family, torch.bfloat16, **options)

    federation = Federation(tmp_path, "llama", fleet.settings(**LANGUAGE, numerics={"compute": "float32"}), save=save)
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    written = {name: tensor.dtype for name, tensor in WeightFiles.open(tmp_path / "out").tensors.items()}
    large = {name: dtype for name, dtype in written.items() if "proj" in name or "embed" in name or "head" in name}
    assert len(large) > 3 * 7
    assert set(large.values()) == {torch.bfloat16}
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    assert loaded.dtype == torch.float32
    assert difference(loaded, *federation.answers()) == 0.0


@pytest.mark.parametrize(
    ("compute", "stored", "written"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float64, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float64, torch.bfloat16),
        (torch.bfloat16, torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.int64, torch.int64),
        (torch.bfloat16, torch.bool, torch.bool),
        (torch.float32, torch.int8, torch.int8),
    ],
)
def test_a_tensor_is_written_in_the_fewer_bytes_that_load_the_same(
    compute: torch.dtype, stored: torch.dtype, written: torch.dtype
) -> None:
    assert written_dtype(compute, stored) == written


def test_experts_of_several_dtypes_lose_nothing(tmp_path: Path) -> None:
    """They are merged into one parameter, in the dtype that holds them all: here the first expert is the smaller."""

    def save(directory: Path, family: str, **options: Any) -> Any:
        model = fleet.save_model(directory, family, **options)
        file = directory / "model.safetensors"
        first = {
            name: value.to(torch.bfloat16) if ".experts.0." in name else value
            for name, value in load_file(file).items()
        }
        assert {value.dtype for value in first.values()} == {torch.bfloat16, torch.float32}
        save_file(first, file, metadata={"format": "pt"})
        return model

    federation = Federation(tmp_path, "mixtral", fleet.settings(**LANGUAGE, numerics={"compute": "float32"}), save=save)
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    assert difference(load(AutoModelForCausalLM, tmp_path / "out"), *federation.answers()) == 0.0


@pytest.mark.parametrize("form", ["mean", "transformers"])
@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2"])
def test_a_classifier_is_the_streamed_one(family: str, form: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, family, fleet.settings(head={"form": form}))
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    loaded = load(AutoModelForSequenceClassification, tmp_path / "out")
    assert difference(loaded, *federation.answers()) == 0.0
    assert loaded.config.id2label == dict(enumerate(fleet.LABELS))


def test_a_tied_head_is_not_written_twice_and_shards_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.weights.writer.group.__kwdefaults__", {"limit_bytes": 60_000})
    federation = Federation(tmp_path, "llama", fleet.settings(**LANGUAGE), tie_word_embeddings=True)
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert "lm_head.weight" not in index["weight_map"]
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    assert difference(loaded, *federation.answers()) == 0.0


def test_it_generates_with_its_tokenizer(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "llama", fleet.settings(**LANGUAGE))
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    written = loaded.generate(
        **tokenizer("the moon", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4
    )
    assert written.shape[1] > 2


def test_the_same_state_gives_the_same_bytes_with_a_card(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    fleet.run_eval(tmp_path, federation.model_dir, federation.data, tmp_path / "eval")
    for name in ("a", "b"):
        run(**federation.inputs(), out=tmp_path / name, format="hf", evaluations=[tmp_path / "eval"])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    card = (tmp_path / "a" / "README.md").read_text()
    state = open_artifact(federation.state, StateManifest)
    for wanted in (state.digest, state.manifest.plan, "| accuracy", "texts on them", "| 12", "trust_remote_code=True"):
        assert wanted in card, wanted
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_an_evaluation_of_another_state_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    fleet.run_eval(tmp_path, federation.model_dir, federation.data, tmp_path / "eval", state="fresh")
    with pytest.raises(BadInput, match="evaluates another state"):
        run(**federation.inputs(), out=tmp_path / "out", format="hf", evaluations=[tmp_path / "eval"])
    with pytest.raises(BadInput, match="is not an evaluation"):
        run(**federation.inputs(), out=tmp_path / "out", format="hf", evaluations=[tmp_path / "plan"])
    assert not (tmp_path / "out").exists()


def test_only_an_export_is_replaced(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    inputs, out = federation.inputs(), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageProblem, match="exists already"):
        run(**inputs, out=out, format="hf")
    run(**inputs, out=out, format="hf", force=True)
    run(**inputs, out=out, format="adapterhub", force=True)
    assert not (out / "config.json").exists()
    for precious in (federation.model_dir, federation.state, tmp_path, federation.data):
        with pytest.raises(UsageProblem, match="is not an export, so it is not replaced"):
            run(**inputs, out=precious, format="hf", force=True)
    assert (federation.model_dir / "model.safetensors").is_file()


def test_a_label_stays_in_its_place_on_the_card() -> None:
    assert plain("a|b\n# <c>") == r"a\|b \# \<c\>"


@pytest.mark.parametrize(
    "name", ["<script>x</script>", "a | b", "`a`", "a\n# b", "\x1b[2J\u202ex", "[a](javascript:b)"]
)
def test_a_name_from_outside_is_a_name_on_the_card(name: str) -> None:
    shown = plain(name)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)[<>|`\[\]#]", shown)


@pytest.mark.parametrize(("family", "form"), [("bert", "mean"), ("roberta", "transformers"), ("gemma3", "mean")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_classifier_in_half_the_bits_is_the_streamed_one(dtype: str, family: str, form: str, tmp_path: Path) -> None:
    chosen = fleet.settings(head={"form": form}, numerics={"compute": dtype}, chain={"start": 1})
    federation = Federation(tmp_path, family, chosen)
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    assert difference(load(AutoModelForSequenceClassification, tmp_path / "out"), *federation.answers()) == 0.0


@pytest.mark.parametrize(("family", "activation"), [("llama", "silu"), ("gpt2", "gelu"), ("bert", "relu")])
def test_it_is_the_base_model_with_adapters_hooked_on_by_hand(family: str, activation: str, tmp_path: Path) -> None:
    """Nothing of ours but the numbers of the state: transformers' model, whole, and Eq. 1 behind its layers."""
    language = family != "bert"
    sections = LANGUAGE if language else {"head": {"form": "transformers"}}
    federation = Federation(tmp_path, family, fleet.settings(**sections, adapter={"activation": activation}))
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    factory = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    base = factory.from_pretrained(federation.model_dir).eval()
    state = load_file(federation.state / "tensors.safetensors")
    base.load_state_dict({name[5:]: value for name, value in state.items() if name[:5] == "head."}, strict=False)
    for index, layer in enumerate(base.get_submodule(LAYERS[family])):
        tensors = [state[f"adapters.{index}.{suffix}"] for suffix in SUFFIXES]
        layer.register_forward_hook(by_hand(getattr(F, activation), *tensors))
    batch, _ = federation.answers()
    with torch.no_grad():
        expected = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert difference(load(factory, tmp_path / "out"), batch, expected) == 0.0


def by_hand(activation: Any, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Any:
    def change(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        after = hidden + F.linear(activation(F.linear(hidden, down, down_bias)), up, up_bias)
        return (after, *output[1:]) if isinstance(output, tuple) else after

    return change
