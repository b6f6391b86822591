"""From token states to one feature row a text: each way of pooling against plain numpy over the tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.settings import SimilaritySettings
from stages.data.layout import Layout
from stages.similarity.pooling import draw_rows, features
from stages.streaming.hidden_states import HiddenStates

LENGTHS = [3, 1, 5, 2, 4]
WIDTH = 6


def states_of(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, WIDTH)).astype(np.float32)


TEXTS = [states_of(length, index) for index, length in enumerate(LENGTHS)]


@pytest.fixture(params=["memory-right", "memory-left", "file-right", "file-left"])
def hidden(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HiddenStates]:
    """The texts above, scattered from a padded batch whose padding is not zero."""
    place, side = str(request.param).split("-")
    limit = 2**20 if place == "memory" else 0
    with HiddenStates(LENGTHS, WIDTH, torch.float32, scratch=tmp_path, in_memory_limit_bytes=limit) as states:
        batch = torch.full((len(LENGTHS), max(LENGTHS), WIDTH), 1e6)
        for index, text in enumerate(TEXTS):
            first = 0 if side == "right" else max(LENGTHS) - len(text)
            batch[index, first : first + len(text)] = torch.from_numpy(text)
        states.scatter(range(len(LENGTHS)), batch, Layout.padded(LENGTHS, side))
        yield states


def unit(text: np.ndarray) -> np.ndarray:
    return np.asarray(text / np.linalg.norm(text, axis=1, keepdims=True))


def pool(text: np.ndarray, choice: SimilaritySettings) -> np.ndarray:
    """One row, the slow way."""
    rows = unit(text) if choice.scale == "unit" else text
    kept = rows[1:] if choice.tokens == "skip-first" and len(rows) > 1 else rows
    return np.asarray({"mean": kept.mean(0), "first": kept[0], "last": kept[-1]}[choice.pooling])


CHOICES = [
    SimilaritySettings.model_validate({"pooling": pooling, "tokens": tokens, "scale": scale})
    for pooling in ("mean", "first", "last")
    for tokens in ("all", "skip-first")
    for scale in ("none", "unit")
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.pooling}-{choice.tokens}-{choice.scale}")
def test_a_pooled_text_is_what_numpy_makes_of_its_real_tokens(hidden: HiddenStates, choice: SimilaritySettings) -> None:
    rows = draw_rows(LENGTHS, choice, np.random.default_rng(0))
    got = features(hidden, rows, choice)
    assert got.dtype == np.float64
    assert got.shape == (len(LENGTHS), WIDTH)
    assert np.allclose(got, [pool(text, choice) for text in TEXTS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["none", "unit"])
@pytest.mark.parametrize("tokens", ["all", "skip-first"])
def test_rows_of_tokens_are_the_tokens_themselves(hidden: HiddenStates, tokens: str, scale: str) -> None:
    choice = SimilaritySettings.model_validate({"pooling": "tokens", "tokens": tokens, "scale": scale})
    rows = draw_rows(LENGTHS, choice, np.random.default_rng(0))
    skip = 1 if tokens == "skip-first" else 0
    expected = [(text, token) for text, n in enumerate(LENGTHS) for token in range(n) if token >= skip or n == 1]
    assert rows == expected
    slow = [(unit(TEXTS[text]) if scale == "unit" else TEXTS[text])[token] for text, token in rows]
    assert np.allclose(features(hidden, rows, choice), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_every_text_is_a_row_where_texts_are_pooled(pooling: str) -> None:
    choice = SimilaritySettings.model_validate({"pooling": pooling})
    assert draw_rows([4, 1, 9], choice, np.random.default_rng(0)) == [(0, -1), (1, -1), (2, -1)]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    most=st.integers(5, 64),
    tokens=st.sampled_from(["all", "skip-first"]),
    seed=st.integers(0, 2**32),
)
def test_drawn_tokens_are_distinct_sorted_real_bounded_and_the_same_again(
    lengths: list[int], most: int, tokens: str, seed: int
) -> None:
    choice = SimilaritySettings.model_validate(
        {"pooling": "tokens", "tokens": tokens, "max_examples": most, "min_examples": 5}
    )
    rows = draw_rows(lengths, choice, np.random.default_rng(seed))
    assert rows == draw_rows(lengths, choice, np.random.default_rng(seed))
    assert rows == sorted(set(rows))
    assert all(0 <= token < lengths[text] for text, token in rows)
    skipped = sum(length > 1 for length in lengths) if tokens == "skip-first" else 0
    assert len(rows) == min(most, sum(lengths) - skipped)
    if tokens == "skip-first":
        assert all(token > 0 or lengths[text] == 1 for text, token in rows)


def test_other_seeds_draw_other_tokens() -> None:
    choice = SimilaritySettings(pooling="tokens", max_examples=8, min_examples=5)
    drawn = {tuple(draw_rows([10] * 10, choice, np.random.default_rng(seed))) for seed in range(10)}
    assert len(drawn) == 10


def test_unit_scale_takes_the_sink_out_of_a_mean(tmp_path: Path) -> None:
    """The first token of a decoder dwarfs all others; unit scale gives it one vote among the tokens."""
    text = states_of(9, 5)
    text[0] *= 1e4
    with HiddenStates([9], WIDTH, torch.float32, scratch=tmp_path) as states:
        states.scatter([0], torch.from_numpy(text)[None], Layout.padded([len(text)], "right"))
        plain = features(states, [(0, -1)], SimilaritySettings(scale="none"))[0]
        even = features(states, [(0, -1)], SimilaritySettings(scale="unit"))[0]
    assert np.linalg.norm(plain) > 100
    assert np.linalg.norm(even) <= 1.0 + 1e-6
    assert np.allclose(even, unit(text).mean(0), atol=1e-6)


def test_bfloat16_states_are_pooled_in_full_precision(tmp_path: Path) -> None:
    text = torch.from_numpy(states_of(7, 3)).bfloat16()
    with HiddenStates([7], WIDTH, torch.bfloat16, scratch=tmp_path, in_memory_limit_bytes=0) as states:
        states.scatter([0], text[None], Layout.padded([len(text)], "right"))
        got = features(states, [(0, -1)], SimilaritySettings(scale="none"))[0]
    assert np.allclose(got, text.float().numpy().astype(np.float64).mean(0), atol=1e-6)
