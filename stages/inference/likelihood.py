"""Log-likelihood of continuations given their contexts, under the full model: base, adapters, language head.

    log p(continuation | context) = Σ_t log p(token_t | context, tokens before t)

All requests pass the layers together, in the canonical order of texts, so each layer is read once however many
questions a benchmark has.  Requests that differ only in their last token (the letters of a multiple choice) share
one row: a causal prediction does not depend on later tokens.  For the same reason rows are padded on the right,
whatever the plan says: no real token attends to the padding.

Shapes: B rows, S tokens, D hidden size, N predicted positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from schemas.errors import BadInput
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.process.progress import Progress, silent
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import Placement
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning

Tokens = Sequence[int] | np.ndarray
Request = tuple[Tokens, Tokens]  # context and continuation
Likelihood = tuple[float, bool]  # log-probability in nats; whether greedy decoding gives the same tokens


@dataclass(frozen=True)
class Asked:
    """One request: its row, the position that predicts the first token of the continuation, and the continuation."""

    row: int
    first: int
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Requests:
    """Requests as distinct rows of tokens; contexts already hold their special tokens.

    `truncated`: how many contexts lost their beginning.
    """

    rows: EncodedTexts
    asked: tuple[Asked, ...]
    truncated: int

    @classmethod
    def of(cls, requests: Sequence[Request], *, pad_id: int, micro_batch: int, window: int) -> "Requests":
        """Rows of at most `window` tokens; longer requests keep their last ones, as in lm-evaluation-harness.

        Raises `BadInput` if a continuation alone is longer, `ValueError` if a context or continuation is empty.
        """
        rows: dict[bytes, tuple[int, np.ndarray]] = {}
        truncated: set[bytes] = set()
        asked = []
        for context, continuation in requests:
            if len(context) == 0 or len(continuation) == 0:
                raise ValueError("a context and a continuation need at least one token each")
            _check_fits(continuation, window)
            whole = np.concatenate([np.asarray(part, dtype=np.int64) for part in (context, continuation[:-1])])
            if len(whole) > window:
                truncated.add(_key(np.asarray(context)))
            row = whole[-window:]
            number, _ = rows.setdefault(_key(row), (len(rows), row))
            asked.append(Asked(number, len(row) - len(continuation), tuple(map(int, continuation))))
        distinct = tuple(row for _, row in rows.values())
        return cls(EncodedTexts(distinct, pad_id, "right", micro_batch), tuple(asked), len(truncated))


def _key(row: np.ndarray) -> bytes:
    """A hash that identifies a row, kept in place of the row itself."""
    return hashlib.blake2b(row.astype(np.int64).tobytes(), digest_size=16).digest()


def _check_fits(continuation: Tokens, window: int) -> None:
    if len(continuation) > window:
        raise BadInput(
            "a continuation is longer than the model's context window",
            values={"tokens": len(continuation), "window": window},
            hint="use a model with a longer window, or leave the record out",
        )


def window_of(backbone: Backbone, *, default: int = 2048) -> int:
    """The model's context window in tokens: its positions, else what its configuration says; `default` for Mamba."""
    limit = backbone.position_limit or getattr(backbone.skeleton.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else default


@torch.no_grad()
def score(
    backbone: Backbone,
    tuning: Tuning,
    requests: Requests,
    *,
    placement: Placement,
    scratch: Path,
    progress: Progress = silent,
) -> list[Likelihood]:
    """Log-probability of each continuation in nats, summed over its tokens, and whether they are the greedy ones."""
    if not requests.asked:
        return []
    rows, found = requests.rows, dict[int, Likelihood]()
    of_row: dict[int, list[int]] = {}
    for number, asked in enumerate(requests.asked):
        of_row.setdefault(asked.row, []).append(number)
    head = LanguageHead.of(backbone, resident=placement.head_resident)
    with hidden_states(backbone, rows, placement, scratch=scratch) as hidden:
        run_prefix(
            backbone,
            rows,
            hidden,
            tuning,
            stop=backbone.num_layers,
            prefetch=placement.prefetch,
            progress=progress,
        )
        for indices in rows.chunks():
            numbers = [number for index in indices for number in of_row[index]]
            found |= zip(numbers, _answers(head, hidden, requests, indices, numbers), strict=True)
    return [found[number] for number in range(len(requests.asked))]


def _answers(
    head: LanguageHead, hidden: HiddenStates, requests: Requests, indices: Sequence[int], numbers: Sequence[int]
) -> list[Likelihood]:
    """Likelihoods of the requests `numbers`, whose rows are all among `indices`."""
    rows, asked = requests.rows, [requests.asked[number] for number in numbers]
    batch = rows.batch(indices)
    arrived_BSD = head.arriving(hidden.gather(indices, rows.layout(indices)), batch)
    line = {index: place for place, index in enumerate(indices)}
    places = [line[one.row] for one in asked for _ in one.continuation]
    columns = [one.first + place for one in asked for place in range(len(one.continuation))]
    targets_N = torch.tensor([token for one in asked for token in one.continuation])
    # At most as many positions at once as the batch has: the memory prediction assumes that.
    parts = [
        head.log_probabilities(arrived_BSD[place, column], targets)
        for place, column, targets in zip(
            *(torch.as_tensor(values).split(batch.input_ids.numel()) for values in (places, columns, targets_N)),
            strict=True,
        )
    ]
    lengths = [len(one.continuation) for one in asked]
    values = torch.cat([value for value, _ in parts]).double().split(lengths)
    greedy = torch.cat([same for _, same in parts]).split(lengths)
    return [(float(value.sum()), bool(same.all())) for value, same in zip(values, greedy, strict=True)]
