"""Streamed generation writes what transformers' own `generate` writes, with adapters and without, alone or together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.settings import Settings, TaskSettings
from stages.inference.generate import Generator, Sampling, _Chooser
from stages.memory.live_bytes import LiveBytes
from stages.model.language_head import LanguageHead
from stages.streaming.placement import FASTEST, SMALLEST, Placement
from stages.tuning.adapters import Adapter
from stages.tuning.tuning import UNTUNED, BottleneckTuning
from tests import fleet

DEPTH, WIDTH, NEW = 3, 64, 9
LANGUAGE = Settings(task=TaskSettings(kind="causal-lm"))
PROMPTS = [np.array([5, 9, 11, 30]), np.array([7]), np.array([40, 41, 42, 43, 44, 45, 46])]


def random_adapters() -> dict[int, Adapter]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(8, WIDTH), (8,), (WIDTH, 8), (WIDTH,)]
    values = [[torch.randn(shape, generator=generator) * 0.3 for shape in shapes] for _ in range(DEPTH)]
    return {layer: Adapter.of(own, "silu") for layer, own in enumerate(values) if layer > 0}


def ours(
    folder: Path,
    chains: list[dict[int, Adapter]],
    *,
    prompts: list[np.ndarray] = PROMPTS,
    sampling: Sampling | None = None,
    stop: frozenset[int] = frozenset(),
    placement: Placement = FASTEST,
) -> list[list[list[int]]]:
    backbone = fleet.open_backbone(folder, LANGUAGE)
    tunings = [BottleneckTuning(adapters, {}) for adapters in chains]
    return Generator(backbone, tunings, sampling or Sampling(NEW), stop, 0, placement).run(prompts)


def theirs(model: Any, adapters: dict[int, Adapter], prompt: np.ndarray) -> list[int]:
    ids = torch.from_numpy(prompt)[None]
    with fleet.adapted(model, adapters):
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    found: list[int] = written[0, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_k=5), Sampling(temperature=0.7, top_k=5, top_p=0.9)]
)
def test_a_choice_takes_no_more_than_is_predicted(sampling: Sampling) -> None:
    rows, vocabulary = 2, 20_000
    logits = torch.randn(rows, vocabulary)
    choose, live = _Chooser(sampling, rows, 1), LiveBytes([logits])
    with live, torch.no_grad():
        choose(torch.cat(logits.split(2048, dim=1), dim=1))
    predicted = sampling.logit_bytes * rows * vocabulary
    assert live.peak <= predicted
    assert sampling.temperature == 0.0 or live.peak >= 0.95 * predicted


def test_the_head_is_given_no_more_than_the_last_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    kept: list[tuple[int, int]] = []
    logits_of = LanguageHead.logits_of

    def seen(head: LanguageHead, arrived: torch.Tensor) -> torch.Tensor:
        kept.append((arrived.untyped_storage().nbytes(), arrived.nbytes))
        return logits_of(head, arrived)

    monkeypatch.setattr(LanguageHead, "logits_of", seen)
    ours(tmp_path, [{}])
    assert kept
    assert all(storage == values for storage, values in kept)


@torch.no_grad()
def same_text(model: Any, adapters: dict[int, Adapter], prompt: np.ndarray, found: list[int]) -> bool:
    """Whether `found` is what transformers writes.

    They may part where the model likes two tokens equally well, to 1e-4: there the rounding of a kernel decides.
    """
    expected = theirs(model, adapters, prompt)
    for place, (token, other) in enumerate(zip(found, expected, strict=True)):
        if token != other:
            with fleet.adapted(model, adapters):
                logits = model(torch.tensor([[*prompt.tolist(), *found[:place]]])).logits[0, -1]
            return bool(logits.max() - min(logits[token], logits[other]) < 1e-4)
    return True


@pytest.mark.parametrize("family", fleet.LANGUAGE_MODELS)
def test_greedy_texts_are_those_of_transformers_before_and_after(family: str, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family, factory=AutoModelForCausalLM)
    adapters = random_adapters()
    after, before = ours(tmp_path, [adapters, {}])
    for found, chain in ((after, adapters), (before, {})):
        for prompt, text in zip(PROMPTS, found, strict=True):
            assert same_text(model, chain, prompt, text)
    assert after != before


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_a_model_that_finishes_its_logits_is_asked_to(family: str, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family, factory=AutoModelForCausalLM)
    (found,) = ours(tmp_path, [{}])
    assert all(same_text(model, {}, prompt, text) for prompt, text in zip(PROMPTS, found, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_kept_in_memory_changes_no_token(temperature: float, tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    sampling = Sampling(NEW, temperature, top_k=20, top_p=0.9, seed=4)
    fast, small = (
        ours(tmp_path, [random_adapters()], sampling=sampling, placement=placement) for placement in (FASTEST, SMALLEST)
    )
    assert fast == small


def test_a_text_does_not_depend_on_its_company(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    (together,) = ours(tmp_path, [{}], sampling=Sampling(NEW, 1.0, seed=3))
    (alone,) = ours(tmp_path, [{}], prompts=PROMPTS[:1], sampling=Sampling(NEW, 1.0, seed=3))
    assert together[:1] == alone


def test_a_seed_decides_what_is_drawn(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    first, again, other = (ours(tmp_path, [{}], sampling=Sampling(NEW, 1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    (left, right) = ours(tmp_path, [{}, {}], sampling=Sampling(NEW, 1.0, seed=1))
    assert left == right == first[0]


def test_draws_have_the_shares_that_the_model_gives(tmp_path: Path) -> None:
    """400 seeds of one token against softmax: total variation within what 400 draws of 5 tokens vary."""
    model = fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    prompt = PROMPTS[0]
    backbone = fleet.open_backbone(tmp_path, LANGUAGE)
    sampling = [Sampling(1, 0.7, top_k=5, seed=seed) for seed in range(400)]
    drawn = [Generator(backbone, [UNTUNED], one, frozenset(), 0, FASTEST).run([prompt])[0][0][0] for one in sampling]
    with torch.no_grad():
        logits = model(torch.from_numpy(prompt)[None]).logits[0, -1] / 0.7
    likeliest = logits.topk(5)
    shares = torch.softmax(likeliest.values, 0).numpy()
    counts = np.array([drawn.count(int(token)) for token in likeliest.indices])
    assert counts.sum() == 400
    assert np.abs(counts / 400 - shares).sum() / 2 < 0.1


def test_a_text_ends_where_the_model_ends_it(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama", factory=AutoModelForCausalLM)
    (whole,) = ours(tmp_path, [{}])
    stop = whole[0][4]
    (ended,) = ours(tmp_path, [{}], stop=frozenset([stop]))
    assert ended == [text[: text.index(stop)] if stop in text else text for text in whole]
