"""Texts to token ids: the same as transformers' own fast tokenizer reads from the same `tokenizer.json`.

The tokenizers are small but real: trained here by the `tokenizers` library, one WordPiece with a BERT-like template,
one byte-level BPE without special tokens, as encoders and decoders have them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from schemas.errors import BadInput
from schemas.settings import EncodingSettings
from stages.data.encode import Encoded, Encoder, Remembered
from stages.data.layout import Layout
from stages.data.load import Example
from tests import fleet

CORPUS = [
    "the cat sat on the mat and looked at the rain",
    "a dog ran over the hill, and the cat watched it run!",
    "rain is falling on the hill; nobody is running today",
    "grüße an alle, the weather is cold and the mat is wet",
]
TEXTS = [*CORPUS, "cat", "unseen zyzzyva words 你好 🙂", "  spaced   out  ", "line\nbreak\tand tab", "x" * 300]


def write_wordpiece(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_bpe(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


WRITERS = {"wordpiece": write_wordpiece, "bpe": write_bpe}


@pytest.fixture(params=sorted(WRITERS))
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path)


def describe(folder: Path, name: str, document: object) -> None:
    (folder / name).write_text(json.dumps(document))


def by_transformers(folder: Path, texts: Sequence[str], max_length: int) -> list[list[int]]:
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    encoded = fast(list(texts), truncation=True, max_length=max_length, padding=False)
    return [list(map(int, ids)) for ids in encoded["input_ids"]]


@pytest.mark.parametrize("max_length", [2, 3, 7, 16, 128])
def test_ids_and_truncation_are_those_of_transformers(model_dir: Path, max_length: int) -> None:
    rows = fleet.token_ids(Encoder.load(model_dir, EncodingSettings(max_length=max_length)), TEXTS)
    assert [row.tolist() for row in rows] == by_transformers(model_dir, TEXTS, max_length)
    assert all(row.dtype == np.int64 and row.ndim == 1 and 1 <= len(row) <= max_length for row in rows)
    assert max(len(row) for row in rows) == min(max_length, max(map(len, by_transformers(model_dir, TEXTS, 10_000))))


def test_special_tokens_stay_where_a_text_is_cut(tmp_path: Path) -> None:
    encoder = Encoder.load(write_wordpiece(tmp_path), EncodingSettings(max_length=5))
    (row,) = fleet.token_ids(encoder, [CORPUS[0]])
    assert (row[0], row[-1], len(row)) == (2, 3, 5)


def test_padding_and_truncation_kept_in_the_file_do_not_count(tmp_path: Path) -> None:
    write_wordpiece(tmp_path)
    expected = by_transformers(tmp_path, TEXTS, 12)
    path = tmp_path / "tokenizer.json"
    stored = Tokenizer.from_file(str(path))
    stored.enable_padding(length=64, pad_id=0, pad_token="[PAD]")
    stored.enable_truncation(4)
    stored.save(str(path))
    rows = fleet.token_ids(Encoder.load(tmp_path, EncodingSettings(max_length=12)), TEXTS)
    assert [row.tolist() for row in rows] == expected


def test_a_text_alone_or_among_others_has_the_same_ids(model_dir: Path) -> None:
    encoder = Encoder.load(model_dir, EncodingSettings(max_length=16))
    together = fleet.token_ids(encoder, TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        assert np.array_equal(fleet.token_ids(encoder, [text])[0], row)


def test_a_text_that_no_token_stands_for_still_has_one_position(tmp_path: Path) -> None:
    describe(tmp_path, "config.json", {"eos_token_id": 5})
    encoder = Encoder.load(write_bpe(tmp_path), EncodingSettings())
    assert fleet.token_ids(encoder, [""])[0].tolist() == [5]


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"pad_token_id": 7, "eos_token_id": 9}, {"pad_token": "[MASK]"}, 7),
        ({"pad_token_id": 0, "eos_token_id": 9}, {"pad_token": "[MASK]"}, 0),
        ({"pad_token_id": None, "eos_token_id": 9}, {"pad_token": "[MASK]"}, 4),
        ({"pad_token_id": -1, "eos_token_id": 9}, {"pad_token": None}, 9),  # the first LLaMA
        ({"eos_token_id": 9}, {"pad_token": {"content": "[MASK]", "lstrip": False}}, 4),
        ({"eos_token_id": 9}, {"pad_token": "no such token"}, 9),
        ({"eos_token_id": 9}, {"pad_token": None}, 9),
        ({"eos_token_id": [11, 9]}, {}, 11),
        ({"eos_token_id": 9}, None, 9),
        (None, {"pad_token": "[SEP]"}, 3),
        ({}, {}, 0),
        (None, None, 0),
    ],
)
def test_the_padding_token_is_the_models_else_the_tokenizers_else_the_end_of_text(
    config: object, tokenizer_config: object, expected: int, tmp_path: Path
) -> None:
    write_wordpiece(tmp_path)
    for name, document in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        if document is not None:
            describe(tmp_path, name, document)
    assert Encoder.load(tmp_path, EncodingSettings()).pad_id == expected


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="has no tokenizer"):
        Encoder.load(tmp_path, EncodingSettings())


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"\xff\xfe", b'{"model": {"type": "Nonsense"}}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(BadInput, match="cannot be read"):
        Encoder.load(tmp_path, EncodingSettings())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_that_of_transformers(side: str, tmp_path: Path) -> None:
    write_wordpiece(tmp_path)
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="[PAD]", padding_side=side
    )
    expected = fast(TEXTS, truncation=True, max_length=20, padding=True, return_tensors="np")
    encoder = Encoder.load(tmp_path, EncodingSettings(max_length=20))
    rows = fleet.token_ids(encoder, TEXTS)
    layout = Layout.padded([len(row) for row in rows], side)
    ids, mask = layout.lay(rows, encoder.pad_id), layout.lay([np.ones_like(row) for row in rows], 0)
    assert np.array_equal(ids, expected["input_ids"])
    assert np.array_equal(mask, expected["attention_mask"])


def test_an_encoder_that_remembers_gives_the_same_and_encodes_no_text_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(write_wordpiece(tmp_path), EncodingSettings(max_length=16))
    remembering = encoder.remembering()
    asked: list[int] = []
    inner = Encoder._encode

    def count(self: Encoder, examples: Sequence[Example]) -> list[Encoded]:
        asked.append(len(examples))
        return inner(self, examples)

    monkeypatch.setattr(Encoder, "_encode", count)
    labelled = [Example(text, "label") for text in TEXTS]
    for examples in (fleet.examples([{"text": text} for text in TEXTS[:5]]), labelled, labelled[::-1]):
        for one, expected in zip(remembering.encode_examples(examples), inner(encoder, examples), strict=True):
            assert np.array_equal(one.ids, expected.ids)
            assert np.array_equal(one.in_loss, expected.in_loss)
            assert one.truncated == expected.truncated
    assert asked == [5, len(TEXTS) - 5]
    again = Encoder.load(tmp_path, EncodingSettings(max_length=16)).remembering(remembering)
    shorter = Encoder.load(tmp_path, EncodingSettings(max_length=8)).remembering(remembering)
    assert again.remembered is remembering.remembered
    assert [len(one.ids) for one in shorter.encode_examples(labelled)] == [
        len(one.ids) for one in inner(shorter, labelled)
    ]


def test_what_is_remembered_is_bounded_and_tells_dialogues_from_texts() -> None:
    ids = np.arange(100)
    remembered = Remembered(limit_bytes=3000)
    for number in range(50):
        remembered.add(Example(str(number), None), Encoded(ids, ids > 0, truncated=False))
    kept = [number for number in range(50) if remembered.get(Example(str(number), "any")) is not None]
    assert kept == [0, 1]
    assert remembered.get(Example("", None, (("user", "0"),))) is None
