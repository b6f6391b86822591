"""Special tokens and the end of a text are those of transformers; what cannot be read is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from schemas.errors import BadInput
from schemas.settings import EncodingSettings, PromptSettings
from stages.data.encode import Encoder
from stages.data.load import Example
from stages.data.template import ChatTemplate
from stages.data.tokenizer import ModelTokenizer
from tests.fleet.chat_templates import CHATML

ALPACA, CHAT = PromptSettings(format="alpaca"), PromptSettings(format="chat")
ANSWERED = Example("", None, (("instruction", "say"), ("output", "hello")))
TALK = Example("", None, (("user", "say"), ("assistant", "hello")))
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def save(folder: Path, *, family: str = "GPT2", config: dict[str, Any] | None = None, **model: Any) -> Path:
    """A folder with a configuration of transformers and a byte-level tokenizer whose first token ends a text."""
    folder.mkdir(exist_ok=True)
    getattr(transformers, f"{family}Config")(bos_token_id=0, **{"eos_token_id": 0, **model}).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello the cat"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return folder


def write(folder: Path, name: str, document: Any) -> None:
    (folder / name).write_text(json.dumps(document))


def learned(folder: Path, prompt: PromptSettings = ALPACA, example: Example = ANSWERED) -> str:
    """The text whose tokens are in the loss."""
    encoder = Encoder.load(folder, EncodingSettings(max_length=512), prompt)
    (found,) = encoder.encode_examples([example])
    text: str = encoder.tokenizer.decode(found.ids[found.in_loss].tolist(), skip_special_tokens=False)
    return text


@pytest.mark.parametrize(
    ("config", "model", "generation", "end"),
    [
        ({"eos_token": "<|im_end|>"}, {}, None, "<|im_end|>"),
        ({"eos_token": {"content": "<|im_end|>", "lstrip": False}}, {}, None, "<|im_end|>"),
        ({}, {"eos_token_id": 0}, None, "<|endoftext|>"),
        ({"eos_token": None}, {"eos_token_id": 0}, None, "<|endoftext|>"),
        ({"eos_token": "not in the vocabulary"}, {"eos_token_id": 0}, None, "<|endoftext|>"),
        ({}, {"eos_token_id": [1, 0]}, None, "<|im_end|>"),
        ({}, {"eos_token_id": [999, 0]}, None, "<|endoftext|>"),
        ({}, {"eos_token_id": None}, {"eos_token_id": 1}, "<|im_end|>"),
        ({}, {"eos_token_id": None}, {"eos_token_id": [1, 0]}, "<|im_end|>"),
        ({}, {"eos_token_id": None}, {"eos_token_id": "<|im_end|>"}, "<|im_end|>"),
        ({}, {"eos_token_id": None}, {"eos_token_id": {"content": "<|im_end|>"}}, "<|im_end|>"),
        ({}, {"eos_token_id": 0}, {"eos_token_id": None}, "<|endoftext|>"),
    ],
)
def test_the_end_of_a_response_is_in_the_loss(
    config: dict[str, Any], model: dict[str, Any], generation: dict[str, Any] | None, end: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, config=config, **model)
    if generation is not None:
        write(folder, "generation_config.json", generation)
    assert learned(folder) == f"hello{end}"
    own = ModelTokenizer.load(folder)
    assert own.special_tokens["eos_token"] == end or "eos_token" in config
    assert own.tokenizer.token_to_id(end) in own.end_ids


def test_the_end_is_that_of_a_multimodal_models_text_model(tmp_path: Path) -> None:
    folder = save(tmp_path)
    write(folder, "config.json", {"model_type": "gemma3", "text_config": {"eos_token_id": 1}})
    assert learned(folder) == "hello<|im_end|>"


@pytest.mark.parametrize("family", ["GPT2", "GPTNeoX", "Qwen2"])
@pytest.mark.parametrize(
    "config", [{}, {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}, {"tokenizer_class": "PreTrainedTokenizerFast"}]
)
def test_special_tokens_are_those_of_transformers(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Where transformers knows none, the model's own values."""
    folder = save(tmp_path, family=family, config=config)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = ModelTokenizer.load(folder).special_tokens
    assert ours["eos_token"] == (theirs.eos_token or "<|endoftext|>")
    for name in ("bos_token", "sep_token", "cls_token"):
        assert ours.get(name) == theirs.special_tokens_map.get(name)


@pytest.mark.parametrize("listed", [False, True])
def test_the_older_file_names_tokens_as_in_transformers(listed: bool, tmp_path: Path) -> None:
    """It counts unless the newer file lists the added tokens."""
    added = {"added_tokens_decoder": {"1": {"content": "<|im_end|>", "special": True}}} if listed else {}
    folder = save(tmp_path, config={"eos_token": "<|endoftext|>", "sep_token": "<|pad|>", **added})
    write(folder, "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}, "cls_token": "<|pad|>"})
    theirs, ours = AutoTokenizer.from_pretrained(folder), ModelTokenizer.load(folder).special_tokens
    for name in ("eos_token", "sep_token", "cls_token"):
        assert ours.get(name) == theirs.special_tokens_map.get(name)


def test_tokens_of_the_model_alone_and_additional_ones_have_their_names(tmp_path: Path) -> None:
    named = {"image_token": "<|pad|>", "extra_special_tokens": {"audio_token": "<|im_end|>"}}
    folder = save(tmp_path / "named", config=named)
    theirs, ours = AutoTokenizer.from_pretrained(folder), ModelTokenizer.load(folder).special_tokens
    for name in ("image_token", "audio_token"):
        assert ours[name] == theirs.special_tokens_map[name]
    folder = save(tmp_path / "listed", config={"additional_special_tokens": ["<|im_end|>", {"content": "<|pad|>"}]})
    assert ModelTokenizer.load(folder).special_tokens["additional_special_tokens"] == ["<|im_end|>", "<|pad|>"]


def test_a_named_token_that_tokenizer_json_lists_as_a_word_is_one_token(tmp_path: Path) -> None:
    folder = save(tmp_path, config={"eos_token": "</s>"})
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"]["</s>"] = max(stored["model"]["vocab"].values()) + 1
    write(folder, "tokenizer.json", stored)
    theirs = AutoTokenizer.from_pretrained(folder)("hello</s>")["input_ids"]
    encoder = Encoder.load(folder, EncodingSettings())
    assert encoder.encode_examples([Example("hello</s>", None)])[0].ids.tolist() == theirs
    assert learned(folder) == "hello</s>"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Truncated anywhere; with the whole file all is well again, as the hint says."""
    folder = save(tmp_path, config={"eos_token": "<|im_end|>"})
    whole = {
        "generation_config.json": json.dumps({"eos_token_id": 1}),
        "special_tokens_map.json": json.dumps({"eos_token": "<|im_end|>"}),
        "chat_template.json": json.dumps({"chat_template": CHATML}),
        "chat_template.jinja": CHATML,
    }.get(name) or (folder / name).read_text().strip()
    for bytes_left in (0, 1, len(whole) // 2, len(whole) - 1):
        if name == "chat_template.jinja" and bytes_left == 1:
            continue  # a template too
        (folder / name).write_text(whole[:bytes_left])
        with pytest.raises(BadInput, match=name.replace(".", r"\.")) as caught:
            Encoder.load(folder, EncodingSettings(), CHAT)
        assert "again" in caught.value.hint
    (folder / name).write_text(whole)
    assert learned(folder, CHAT, TALK) == "hello<|im_end|>"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00", b"[]", b"null", b"3", b"[" * 100_000, b'{"chat_template": "\\ud800"}']
)
def test_a_file_of_another_kind_is_refused_by_name(name: str, data: bytes, tmp_path: Path) -> None:
    if name == "chat_template.jinja" and b"\xff" not in data:
        return  # a template too
    folder = save(tmp_path)
    (folder / name).write_bytes(data)
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        Encoder.load(folder, EncodingSettings(), CHAT)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("tokenizer_config.json", {"eos_token": 3}),
        ("tokenizer_config.json", {"pad_token": ["<|pad|>"]}),
        ("special_tokens_map.json", {"eos_token": 3}),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "x"}]}),
        ("generation_config.json", {"eos_token_id": 1.5}),
        ("generation_config.json", {"eos_token_id": [[1]]}),
        ("config.json", {"eos_token_id": True}),
        ("config.json", {"eos_token_id": -1}),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(name: str, document: Any, tmp_path: Path) -> None:
    folder = save(tmp_path)
    write(folder, name, document)
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        Encoder.load(folder, EncodingSettings(), CHAT)


@pytest.mark.parametrize("template", [3, {}, [{"name": "rag", "template": "x"}]])
def test_without_a_default_template_the_hint_is_a_way_out(template: Any, tmp_path: Path) -> None:
    folder = save(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": template})
    with pytest.raises(BadInput, match="the chat template is not a text") as caught:
        Encoder.load(folder, EncodingSettings(), CHAT)
    assert 'set prompt.template = "alpaca"' in caught.value.hint
    assert learned(folder, CHAT.model_copy(update={"template": "alpaca"}), TALK) == "hello<|im_end|>"


def test_instruction_data_needs_a_template_as_the_hint_says(tmp_path: Path) -> None:
    folder = save(tmp_path)
    with pytest.raises(BadInput, match="instruction data needs a template") as caught:
        Encoder.load(folder, EncodingSettings(), ALPACA.model_copy(update={"template": "none"}))
    assert caught.value.hint == "leave prompt.template at auto"
    assert learned(folder) == "hello<|endoftext|>"


def test_a_model_that_names_no_end_is_refused_and_the_hint_is_a_way_out(tmp_path: Path) -> None:
    folder = save(tmp_path, eos_token_id=None)
    with pytest.raises(BadInput, match="does not say which token ends a text") as caught:
        Encoder.load(folder, EncodingSettings(), ALPACA)
    assert 'add "eos_token" to tokenizer_config.json' in caught.value.hint
    Encoder.load(folder, EncodingSettings())  # a plain text has no response
    write(folder, "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    assert learned(folder) == "hello<|endoftext|>"


def test_a_template_of_a_processor_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path)
    write(folder, "chat_template.json", {"chat_template": CHATML})
    encoder = Encoder.load(folder, EncodingSettings(), CHAT)
    assert isinstance(encoder.template, ChatTemplate)
    assert encoder.template.source == CHATML
