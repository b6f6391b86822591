"""Streamed log-likelihoods against transformers' own resident model with the same adapters as forward hooks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from stages.inference.likelihood import Likelihood, Request, Requests, score, window_of
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.streaming.placement import FASTEST, PLACEMENTS, Placement
from stages.tuning.adapters import Adapter
from stages.tuning.tuning import BottleneckTuning
from tests import fleet

LANGUAGE = fleet.settings(**fleet.LANGUAGE)
REQUESTS: list[Request] = [
    ([1, 5, 6], [7, 8, 9]),
    ([1, 5, 6], [7]),
    ([1, 5, 6], [30]),
    ([1], [10]),
    ([1, 20, 21, 22, 23, 24, 25], [26, 27]),
    ([1, 5], [6, 7]),  # the row of ([1, 5, 6], [7])
]
token_lists = st.lists(st.integers(2, 95), min_size=1, max_size=7)


@torch.no_grad()
def resident(model: Any, adapters: dict[int, Adapter], request: Request) -> Likelihood:
    """One request at a time, from whole logits."""
    context, continuation = request
    with fleet.adapted(model, adapters):
        whole = torch.tensor([[*context, *continuation[:-1]]])
        logits = model(input_ids=whole).logits[0, len(context) - 1 :].float()
    targets = torch.tensor(continuation)
    value = F.log_softmax(logits.double(), dim=-1)[range(len(targets)), targets].sum()
    return float(value), bool((logits.argmax(-1) == targets).all())


def streamed(
    backbone: Backbone,
    requests: list[Request],
    folder: Path,
    *,
    micro_batch: int = 8,
    placement: Placement = FASTEST,
) -> list[Likelihood]:
    prepared = Requests.of(requests, pad_id=0, micro_batch=micro_batch, window=window_of(backbone))
    return score(backbone, BottleneckTuning(fleet.random_adapters(), {}), prepared, placement=placement, scratch=folder)


def opened(folder: Path, family: str, **changes: Any) -> tuple[Backbone, Any]:
    model = fleet.save_model(folder, family, factory=AutoModelForCausalLM, **changes)
    return fleet.open_backbone(folder, LANGUAGE), model


@pytest.mark.parametrize("family", [*fleet.LANGUAGE_MODELS, *fleet.FINISHING])
def test_streamed_likelihoods_equal_those_of_the_resident_model(family: str, tmp_path: Path) -> None:
    backbone, model = opened(tmp_path, family)
    found = streamed(backbone, REQUESTS, tmp_path, micro_batch=3)
    for request, one in zip(REQUESTS, found, strict=True):
        value, greedy = resident(model, fleet.random_adapters(), request)
        assert one[0] == pytest.approx(value, abs=1e-5)
        assert one[1] == greedy


def test_the_likeliest_continuation_is_greedy(tmp_path: Path) -> None:
    backbone, model = opened(tmp_path, "llama")
    context, written = [1, 5, 6], list[int]()
    with fleet.adapted(model, fleet.random_adapters()), torch.no_grad():
        for _ in range(4):
            written.append(int(model(input_ids=torch.tensor([context + written])).logits[0, -1].argmax()))
    spoiled = [*written[:2], (written[2] + 1) % 96, written[3]]
    assert [same for _, same in streamed(backbone, [(context, written), (context, spoiled)], tmp_path)] == [True, False]


def test_neither_order_nor_batch_nor_placement_changes_a_value(tmp_path: Path) -> None:
    backbone, _ = opened(tmp_path, "qwen3")
    expected = streamed(backbone, REQUESTS, tmp_path)
    for placement in PLACEMENTS:
        assert streamed(backbone, REQUESTS, tmp_path, placement=placement) == expected
    assert streamed(backbone, REQUESTS[::-1], tmp_path)[::-1] == expected
    for size in (1, 2, 3):
        for one, other in zip(streamed(backbone, REQUESTS, tmp_path, micro_batch=size), expected, strict=True):
            assert one[0] == pytest.approx(other[0], abs=1e-5)


def test_probabilities_of_all_next_tokens_sum_to_one(tmp_path: Path) -> None:
    backbone, _ = opened(tmp_path, "gpt2")
    found = streamed(backbone, [([1, 5, 6], [token]) for token in range(96)], tmp_path)
    assert torch.tensor([value for value, _ in found]).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert sum(same for _, same in found) == 1


def test_choices_that_differ_in_their_last_token_share_a_row() -> None:
    letters: list[Request] = [([1, 5, 6], [letter]) for letter in range(4)]
    prepared = Requests.of([*letters, *REQUESTS], pad_id=0, micro_batch=4, window=99)
    assert [one.row for one in prepared.asked[:4]] == [0] * 4
    assert prepared.rows.lengths == [3, 5, 1, 8]


@fast(max_examples=100, deadline=None)
@given(requests=st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=6), window=st.integers(7, 14))
def test_rows_hold_what_is_foretold(requests: list[Request], window: int) -> None:
    """Behind each place of a row stands the next token, and of a long request the end is kept."""
    prepared = Requests.of(requests, pad_id=0, micro_batch=2, window=window)
    for (context, continuation), asked in zip(requests, prepared.asked, strict=True):
        row = prepared.rows.rows[asked.row].tolist()
        whole = [*context, *continuation]
        assert row == whole[:-1][-window:]
        assert [*row[asked.first + 1 :], continuation[-1]] == list(continuation) == list(asked.continuation)
    assert prepared.truncated == len({tuple(one) for one, other in requests if len(one) + len(other) - 1 > window})
    assert len({tuple(row) for row in prepared.rows.rows}) == len(prepared.rows.rows)


def test_a_long_context_loses_its_beginning(tmp_path: Path) -> None:
    backbone, model = opened(tmp_path, "gpt2")
    window = window_of(backbone)
    tokens = [2 + place % 90 for place in range(window + 20)]
    ((value, _),) = streamed(backbone, [(tokens, [7, 8])], tmp_path)
    assert value == pytest.approx(
        resident(model, fleet.random_adapters(), (tokens[-window + 1 :], [7, 8]))[0], abs=1e-5
    )
    with pytest.raises(BadInput, match="longer than the model's context window"):
        streamed(backbone, [([1], tokens)], tmp_path)


@pytest.mark.parametrize("request_", [([], [1]), ([1], [])])
def test_an_empty_half_is_the_callers_bug(request_: Request) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Requests.of([request_], pad_id=0, micro_batch=1, window=9)


def test_nothing_asked_is_nothing_answered(tmp_path: Path) -> None:
    assert streamed(opened(tmp_path, "llama")[0], [], tmp_path) == []


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("chunk", [1, 7, 96, 1000])
def test_log_probabilities_in_chunks_equal_those_of_whole_logits(family: str, chunk: int, tmp_path: Path) -> None:
    backbone, _ = opened(tmp_path, family)
    head = LanguageHead.of(backbone)
    rows = torch.randn(40, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    table = torch.cat([part.clone() for _, part in head.chunks(head.vocabulary)])
    whole = head._through_model(rows @ table.T)
    likely = whole.argmax(1)
    for targets in (likely, (likely + 1) % head.vocabulary):
        values, greedy = head.log_probabilities(rows, targets, chunk=chunk)
        assert torch.allclose(values, F.log_softmax(whole, 1)[range(40), targets], atol=1e-5)
        assert torch.equal(greedy, whole.argmax(1) == targets)
        losses, _ = head.cross_entropy(rows, targets, gradient=False, chunk=chunk)
        assert torch.allclose(-losses, values, atol=1e-6)


class Small(LanguageHead):
    """A vocabulary of five."""

    @property
    def vocabulary(self) -> int:
        return 5


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_of_equals_the_first_is_greedy(chunk: int, tmp_path: Path) -> None:
    backbone, _ = opened(tmp_path, "llama")
    table: Tensor = torch.zeros(5, backbone.hidden_size)
    table[[1, 3], 0] = 1
    head = Small(backbone, LanguageHead.of(backbone).table, table)
    arrived = torch.zeros(5, backbone.hidden_size)
    arrived[:, 0] = 2
    _, greedy = head.log_probabilities(arrived, torch.arange(5), chunk=chunk)
    assert greedy.tolist() == [False, True, False, False, False]
