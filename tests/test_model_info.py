"""`model info` says what is there, without reading it."""

import json
import math
import re
from pathlib import Path

import pytest
import transformers
from transformers import AutoModel, AutoModelForCausalLM

from schemas.errors import BadInput
from schemas.settings import Settings
from stages.doctor import examine
from stages.model.architecture import parameters_on_meta
from stages.model.random_weights import LIKE, save_word_tokenizer
from stages.model_info import has_chat_template, lines, look
from tests import fleet


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "mamba"])
def test_the_sizes_are_those_of_the_model(family: str, tied: bool, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family, factory=AutoModelForCausalLM, tie_word_embeddings=tied)
    info = look(tmp_path, fleet.settings())
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert info.architecture == type(model).__name__
    assert info.head_is_tied is tied
    assert (info.head_bytes == 0) is tied
    table = model.get_input_embeddings().weight
    assert info.embedding_bytes == table.numel() * 4
    whole = info.embedding_bytes + info.head_bytes + info.rest_bytes
    if info.smallest_layer_bytes == info.largest_layer_bytes:
        assert whole + info.num_layers * info.largest_layer_bytes == info.parameters * 4
    assert info.dtypes == ("float32",)
    assert info.missing == ()


def test_an_encoder_has_no_language_head(tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, "bert", factory=AutoModel)
    info = look(tmp_path, fleet.settings())
    assert (info.head_bytes, info.head_is_tied, info.decoder) == (0, False, False)
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_what_fits_is_what_the_doctor_says(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    generous = look(tmp_path, fleet.settings(), budget_bytes=64 * 2**30)
    assert generous.largest_window == generous.num_layers == len(generous.fits)
    diagnosis = examine(tmp_path, fleet.settings(), budget_bytes=64 * 2**30)
    for mine, its in zip(generous.fits, diagnosis.fits, strict=True):
        assert (mine.window_size, mine.chosen) == (its.window_size, its.chosen)
        assert mine.smallest_bytes == pytest.approx(its.smallest_bytes, rel=0.05)
    assert look(tmp_path, fleet.settings(), budget_bytes=2**20).largest_window == 0


def test_the_fingerprint_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    expected = fleet.open_model(tmp_path).backbone.reader.fingerprint().digest
    assert look(tmp_path, fleet.settings(), fingerprint=True).fingerprint == expected
    plain = look(tmp_path, fleet.settings())
    assert plain.fingerprint == ""
    assert any("--fingerprint" in line for line in lines(plain))


def test_a_parameter_that_is_not_stored_is_named(tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, "bert", factory=AutoModel)
    model.config.architectures = ["BertForMaskedLM"]
    model.config.save_pretrained(tmp_path)
    info = look(tmp_path, fleet.settings())
    assert "cls.predictions.transform.dense.weight" in info.missing
    assert "pooler.dense.weight" not in info.missing  # which that class does not have
    assert info.unused_bytes > 0


def test_a_chat_template_is_found_in_either_place(tmp_path: Path) -> None:
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BadInput, match=r"tokenizer_config\.json cannot be read"):
        has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(tmp_path)


def write_hollow(directory: Path, like: str) -> None:
    """A model of full size whose weights are a hole in a file: it takes no disk, and reading it would show."""
    likeness = LIKE[like]
    config = getattr(transformers, likeness.config)(**likeness.values)
    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    save_word_tokenizer(directory, 100)
    header, offset = {}, 0
    for name, parameter in model.named_parameters():
        size = math.prod(parameter.shape) * 2
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def test_a_model_of_seven_billion_parameters_is_looked_at_without_reading_it(tmp_path: Path) -> None:
    write_hollow(tmp_path / "model", "llama-2-7b")
    values = {"task": {"kind": "causal-lm"}, "numerics": {"compute": "bfloat16"}}
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", Settings.model_validate(values))
    # In a process of its own: what it predicts includes the memory that the process has now.
    arguments = ("--recipe", recipe, "--memory-budget", "2GiB", "--json")
    info = json.loads(fleet.chainctl_process("model", "info", tmp_path / "model", *arguments).stdout)
    assert info["parameters"] == 6_738_415_616
    assert info["dtypes"] == ["bfloat16"]
    assert info["largest_layer_bytes"] == 202_383_360 * 2
    assert info["largest_window"] == len(info["fits"]) == 4
    assert all(fit["smallest_bytes"] < 2 * 2**30 < info["parameters"] for fit in info["fits"])
    fastest = [fit["fastest_bytes"] for fit in info["fits"]]
    assert fastest == sorted(fastest)


def test_on_the_command_line(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    done = fleet.chainctl("model", "info", tmp_path, "--recipe", recipe, "--memory-budget", "8GiB", "--json")
    answer = json.loads(done.stdout)
    assert answer["largest_window"] == len(answer["fits"])
    assert "streamed, MiB" in done.stderr


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(str(tmp_path))):
        look(tmp_path, fleet.settings())
    fleet.save_tokenizer(tmp_path)
    with pytest.raises(BadInput, match="not a model directory"):
        look(tmp_path, fleet.settings())
