"""Files that mean harm: each ends in an error that names it, within limits that the system keeps, and no traceback.

A real command opens each, in a process that the system ends after ten seconds of processor time, at 192 MiB more than
it began with (which is torch and transformers, 320 MiB), or after two minutes of waiting.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import transformers
from pyarrow import parquet

from schemas.errors import Bug
from tests import fleet
from tests.fleet.confined import chainctl_confined
from tests.fleet.gguf_file import write_gguf
from tests.fleet.labelled_texts import FILLER

GIANT = 6 * 2**30
DEEP = 100_000
SECRET = "Patient-Nr-4711"
Make = Callable[[Path], object]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models that are as they should be."""
    folder = tmp_path_factory.mktemp("models")
    fleet.save_model(folder / "bert", "bert")
    fleet.save_model(folder / "llama", "llama", factory=transformers.AutoModelForCausalLM)
    return {family: folder / family for family in ("bert", "llama")}


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "model"))


def refused(*arguments: object, folder: Path, names: str) -> str:
    """What a command says that refuses; it must name the file."""
    done = chainctl_confined(*arguments, folder=folder)
    said = done.stderr
    assert done.returncode in (2, 3, 4, 5), (done.returncode, said)
    assert done.returncode != Bug.exit_code
    assert "error:" in said
    assert "Traceback" not in said
    assert names in said
    assert SECRET not in said
    return said


# What is not a file at all, and what is too large, in every place where a file is expected.


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_sparse_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(GIANT)


def a_deep_one(path: Path) -> None:
    path.write_text('{"a":' * DEEP + "1" + "}" * DEEP)


def many_small_ones(path: Path) -> None:
    path.write_text("[" + "{}," * (20 * 2**20 // 3) + "{}]")


NOT_FILES: tuple[Make, ...] = (a_pipe, a_device, a_folder, a_sparse_giant)
NOT_JSON: tuple[Make, ...] = (a_deep_one, many_small_ones)
MODEL_FILES = (
    *((name, make) for name in ("config.json", "tokenizer.json", "model.safetensors") for make in NOT_FILES),
    *(("tokenizer_config.json", make) for make in (*NOT_FILES[::2], a_sparse_giant, a_deep_one)),
    *(("model.safetensors.index.json", make) for make in (a_pipe, a_sparse_giant, a_deep_one)),
    *((name, make) for name in ("config.json", "tokenizer.json") for make in NOT_JSON),
)


@pytest.mark.parametrize(("name", "make"), MODEL_FILES)
def test_a_model_s_file(name: str, make: Make, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    (model / name).unlink(missing_ok=True)
    make(model / name)
    refused("model", "info", model, folder=tmp_path, names="model" if make in NOT_FILES else name)


@pytest.mark.parametrize("make", NOT_FILES)
def test_a_recipe(make: Make, models: dict[str, Path], tmp_path: Path) -> None:
    make(tmp_path / "recipe.toml")
    refused("doctor", "--model", models["bert"], "--recipe", tmp_path / "recipe.toml", folder=tmp_path, names="recipe")


def test_a_recipe_of_many_brackets(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("a = " + "[" * DEEP + "]" * DEEP)
    refused("doctor", "--model", models["bert"], "--recipe", tmp_path / "recipe.toml", folder=tmp_path, names="recipe")


# Configurations.

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "a size in words": ("llama", {"hidden_size": "large"}),
    "a size of zero": ("llama", {"hidden_size": 0}),
    "a size below zero": ("bert", {"hidden_size": -64}),
    "a size that is true": ("bert", {"vocab_size": True}),
    "no layers": ("bert", {"num_hidden_layers": 0}),
    "layers in words": ("bert", {"num_hidden_layers": "3"}),
    "half a layer": ("bert", {"num_hidden_layers": 2.5}),
    "a million layers": ("llama", {"num_hidden_layers": 10**6}),
    "a hundred million labels": ("bert", {"num_labels": 10**8}),
    "labels in words": ("bert", {"num_labels": "three"}),
    "names of labels in a list": ("bert", {"id2label": [1, 2]}),
    "a billion hidden": ("llama", {"hidden_size": 10**9}),
    "a billion tokens": ("llama", {"vocab_size": 10**9}),
    "a billion in between": ("llama", {"intermediate_size": 10**9}),
    "a billion positions": ("bert", {"max_position_embeddings": 10**9}),
    "a billion kinds of tokens": ("bert", {"type_vocab_size": 10**9}),
    "a billion wide heads": ("llama", {"head_dim": 10**9}),
    "a size of thirty digits": ("llama", {"vocab_size": 10**30}),
    "heads that do not divide": ("llama", {"num_attention_heads": 7}),
    "no heads": ("llama", {"num_attention_heads": 0}),
    "an unknown dtype": ("llama", {"dtype": "float1337"}),
    "an unknown activation": ("llama", {"hidden_act": "bogus"}),
    "an activation that is a number": ("bert", {"hidden_act": 7}),
    "an unknown attention": ("llama", {"_attn_implementation": "bogus"}),
    "an unknown rotation": ("llama", {"rope_parameters": {"rope_type": "bogus"}}),
    "a rotation in words": ("llama", {"rope_scaling": "bogus"}),
    "an unknown kind of layer": ("llama", {"layer_types": ["bogus"]}),
    "a quantisation in words": ("llama", {"quantization_config": "bogus"}),
    "padding far outside": ("llama", {"pad_token_id": 10**9}),
    "an unknown architecture": ("bert", {"model_type": "bogus"}),
    "two architectures": ("bert", {"model_type": ["bert"]}),
    "a mixture of a million": ("llama", {"model_type": "mixtral", "num_local_experts": 10**6}),
}


SMALL = ("an unknown attention", "padding far outside")  # what a small model of the same architecture does not have


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for name in CONFIGS
        for command in ("model info", "model check", "doctor --model")
        if command != "model check" or name not in SMALL
    ],
)
def test_a_configuration(command: str, name: str, models: dict[str, Path], tmp_path: Path) -> None:
    family, changes = CONFIGS[name]
    model = copy_of(models[family], tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    refused(*command.split(), model, folder=tmp_path, names="model")


NO_CONFIGS = {
    **{text: text for text in ("", "[]", '"config"', "\0\0\0", '{"model_type": "bert",}', "{}")},
    "many small ones": "[" + "{}," * 10_000_000 + "{}]",
}


@pytest.mark.parametrize("text", NO_CONFIGS.values(), ids=NO_CONFIGS)
def test_a_configuration_that_is_none(text: str, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    (model / "config.json").write_text(text)
    refused("doctor", "--model", model, folder=tmp_path, names="config.json")


# Weights.

HEADERS = {
    "longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "deep": struct.pack("<Q", 2 * DEEP) + b"[" * DEEP + b"]" * DEEP,
    "not JSON": struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    "a list": struct.pack("<Q", 2) + b"[]",
    "many small ones": struct.pack("<Q", 30 * 2**20) + b"[" + b"{}," * (10 * 2**20 - 1) + b"{}]",
    "huge shapes": struct.pack("<Q", 74)
    + b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'
    + b"\0\0\0\0",
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_header_of_weights(data: bytes, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    (model / "model.safetensors").write_bytes(data)
    refused("doctor", "--model", model, folder=tmp_path, names="model.safetensors")


def test_weights_with_six_gibibytes_behind_them(models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    os.truncate(model / "model.safetensors", GIANT)
    refused("doctor", "--model", model, folder=tmp_path, names="model.safetensors")


class Bomb:
    """In a pickle: a call that takes 8 GiB."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (8 * 2**30,)


PICKLES: dict[str, Make] = {
    "eight gibibytes": lambda path: torch.save({"a": Bomb()}, path),
    "one value repeated": lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path),
    "one value, many names": lambda path: torch.save(dict.fromkeys(map(str, range(10**4)), torch.ones(100, 100)), path),
    "no tensors": lambda path: torch.save([1, 2], path),
    "code": lambda path: path.write_bytes(pickle.dumps(shutil.rmtree)),
    "nothing": lambda path: path.write_bytes(b""),
    **{make.__name__: make for make in NOT_FILES},
}


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
def test_a_pickle(make: Make, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    (model / "model.safetensors").unlink()
    make(model / "pytorch_model.bin")
    refused("model", "import", model, "--out", tmp_path / "out", folder=tmp_path, names="pytorch_model.bin")
    assert not (tmp_path / "out").exists()


def field(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def gguf(*fields: bytes, tensors: int = 0, after: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields)) + b"".join(fields) + after


GGUFS = {
    "an array of 2^40": gguf(field("a", 9, struct.pack("<IQ", 0, 2**40))),
    "an array of 2^40 texts": gguf(field("a", 9, struct.pack("<IQ", 8, 2**40))),
    "nested arrays": gguf(field("a", 9, struct.pack("<IQ", 9, 1) * 10_000)),
    "a text of 2^60": gguf(field("a", 8, struct.pack("<Q", 2**60))),
    "an unknown kind": gguf(field("a", 99, b"")),
    "2^60 tensors": gguf(tensors=2**60),
    "a tensor of 2^80": gguf(tensors=1, after=struct.pack("<QcIQQIQ", 1, b"a", 2, 2**40, 2**40, 0, 0)),
    "2^60 fields": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "cut short": b"GGUF\3",
    "another format": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("data", GGUFS.values(), ids=GGUFS)
def test_a_gguf_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    refused("model", "import", tmp_path / "model.gguf", "--out", tmp_path / "out", folder=tmp_path, names="model.gguf")


@pytest.mark.parametrize("key", ["llama.block_count", "llama.embedding_length", "llama.feed_forward_length"])
def test_a_gguf_file_that_describes_a_larger_model(key: str, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "model.gguf").read_bytes()
    place = data.index(key.encode()) + len(key) + 4
    (tmp_path / "model.gguf").write_bytes(data[:place] + struct.pack("<I", 10**9) + data[place + 4 :])
    refused("model", "import", tmp_path / "model.gguf", "--out", tmp_path / "out", folder=tmp_path, names="model.gguf")


@pytest.mark.parametrize("name", ["vocab.txt", "vocab.json", "tokenizer.model"])
@pytest.mark.parametrize("make", [a_pipe, a_sparse_giant])
def test_a_vocabulary(name: str, make: Make, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    (model / "tokenizer.json").unlink()
    make(model / name)
    refused("model", "import", model, "--out", tmp_path / "out", folder=tmp_path, names=name)


def test_other_files_of_a_model_may_have_any_size(models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["bert"], tmp_path)
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("\n".join(["[PAD]", "[CLS]", "[UNK]", "[SEP]", "[MASK]", *FILLER]))
    a_sparse_giant(model / "tf_model.h5")
    fleet.chainctl("model", "import", model, "--out", tmp_path / "out")


# Texts.


def a_giant_line(path: Path) -> None:
    path.write_bytes(b'{"text": "')
    os.truncate(path, GIANT)


def a_giant_field(path: Path) -> None:
    path.write_text('text,label\n"' + "many words in a line\n" * 2**21)


def a_deep_line(path: Path) -> None:
    path.write_text('{"text":' * DEEP + "\n")


def one_text_many_times(path: Path) -> None:
    """A kilobyte of 4 GB: a dictionary of one text."""
    table = pyarrow.table(
        {"text": pyarrow.DictionaryArray.from_arrays([0] * 4000, ["x" * 10**6]), "label": ["a"] * 4000}
    )
    parquet.write_table(table, path, compression="zstd")


def one_long_text(path: Path) -> None:
    table = pyarrow.table({"text": ["x" * (300 * 2**20)], "label": ["a"]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def a_compressed_line(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "' + bytes(100 * 2**20), 1))


def compressed_records(path: Path) -> None:
    path.write_bytes(gzip.compress((b'{"text": "' + b"a" * 2000 + b'", "label": "b"}\n') * (50 * 2**10), 9))


DATA: dict[str, tuple[str, Make]] = {
    "a long line, compressed": ("jsonl.gz", a_compressed_line),
    "100 MB of records, compressed": ("jsonl.gz", compressed_records),
    **{f"{make.__name__} of {suffix}": (suffix, make) for suffix in ("jsonl", "csv", "parquet") for make in NOT_FILES},
    "a line of 6 GiB": ("jsonl", a_giant_line),
    "a field of 40 MiB": ("csv", a_giant_field),
    "a deep line": ("jsonl", a_deep_line),
    "a line of many small ones": ("jsonl", many_small_ones),
    "a kilobyte of 4 GB": ("parquet", one_text_many_times),
    "a text of 300 MiB": ("parquet", one_long_text),
    "half a Parquet file": ("parquet", lambda path: path.write_bytes(b"PAR1" + bytes(1000) + b"PAR1")),
}


@pytest.mark.parametrize(("suffix", "make"), DATA.values(), ids=DATA)
def test_texts(suffix: str, make: Make, tmp_path: Path) -> None:
    path = tmp_path / f"texts.{suffix}"
    make(path)
    arguments = ("data", "split", path, "--iid", "--devices", 1, "--out", tmp_path / "out")
    refused(*arguments, folder=tmp_path, names="texts")


# Templates.

TEMPLATES = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * (9000000000 + messages|length) }}",
    "a text of 50 MB": "{{ 'x' * 50000000 }}",
    "a long text, when it is compiled": "{{ 'x' * 9000000000 }}",
    "doubled again and again": "{% set n = namespace(x=messages[0].content) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "a filter that fills": "{{ messages[0].content|center(9000000000) }}",
    "recursion": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "a type error": "{{ messages[0].content + 7 }}",
    "a division by zero": "{{ 1 / (messages|length - messages|length) }}",
    "a large power": "{{ (7 + messages|length) ** 99999999999 }}",
    "no end": "{% for message in messages %}",
    "deep": "{{ " + "(" * 10_000 + ")" * 10_000 + " }}",
}


def save_dialogues(path: Path) -> Path:
    answers = [f"{SECRET} {FILLER[place]} {FILLER[-place]}" for place in range(1, 9)]
    turns = [[{"role": "user", "content": SECRET}, {"role": "assistant", "content": answer}] for answer in answers]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return path


def profiling(model: Path, folder: Path, *settings: str) -> list[object]:
    chosen = ['task.kind="causal-lm"', 'prompt.format="chat"', "similarity.min_examples=5", *settings]
    data = save_dialogues(folder / "texts.jsonl")
    options = [argument for one in chosen for argument in ("--set", one)]
    return ["profile", "--model", model, "--data", data, "--device", "a", "--out", folder / "out", *options]


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template(source: str, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["llama"], tmp_path)
    (model / "chat_template.jinja").write_text(source)
    refused(*profiling(model, tmp_path), folder=tmp_path, names="template")


def test_the_way_out_of_a_chat_template_that_never_ends(models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["llama"], tmp_path)
    (model / "chat_template.jinja").write_text(TEMPLATES["nested loops"])
    said = refused(*profiling(model, tmp_path), folder=tmp_path, names="template")
    assert 'set prompt.template = "alpaca"' in said
    fleet.chainctl(*profiling(model, tmp_path, 'prompt.template="alpaca"'))


@pytest.mark.parametrize("make", NOT_FILES)
def test_a_chat_template_s_file(make: Make, models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(models["llama"], tmp_path)
    make(model / "chat_template.jinja")
    refused(*profiling(model, tmp_path), folder=tmp_path, names="chat_template.jinja")


# What is as it should be passes the same door.


def test_a_model_of_links_is_a_model(models: dict[str, Path], tmp_path: Path) -> None:
    """As in the cache of huggingface_hub."""
    (tmp_path / "links").mkdir()
    for file in models["llama"].iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    linked, own = (fleet.chainctl("model", "info", path).stdout for path in (tmp_path / "links", models["llama"]))
    assert linked.splitlines()[:5] == own.splitlines()[:5]  # then come predicted peaks of this process


def test_a_model_of_several_parts_is_refused_and_the_way_out_works(models: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**sizes, "vocab_size": 96, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    copy_of(models["llama"], tmp_path)
    whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "model")
    said = refused("model", "info", tmp_path / "model", folder=tmp_path, names="config.json")
    assert "several models in one" in said
    assert ".get_decoder().save_pretrained(OUT)" in said
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded.get_decoder().save_pretrained(tmp_path / "out")
    fleet.save_tokenizer(tmp_path / "out")
    fleet.chainctl("model", "info", tmp_path / "out")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(8)[None]
    assert torch.equal(alone(input_ids=ids).logits, whole(input_ids=ids).logits)
