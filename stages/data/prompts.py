"""Prompts and their continuations as tokens, not truncated: benchmark prompts are longer than training texts.

A continuation's tokens are those that follow the context's when both are encoded as one text, as in
lm-evaluation-harness; spaces at the end of a context belong to the continuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.data.encode import Encoder

Ids = np.ndarray  # (S,) int64: a benchmark has millions of tokens, and a list takes five times as much


@dataclass(frozen=True)
class PromptEncoder:
    """A tokenizer that does not truncate, and adds no special token after a text that is to be continued."""

    tokenizer: Any
    pad_id: int

    @classmethod
    def of(cls, encoder: Encoder) -> "PromptEncoder":
        """Take over the encoder's tokenizer, which does not truncate from now on."""
        encoder.tokenizer.no_truncation()
        return cls(encoder.tokenizer, encoder.pad_id)

    def prompt(self, text: str, *, special: bool = True) -> Ids:
        """Token ids (S,) int64 of a text to be continued; with `special`, preceded by the tokens that start a text."""
        return self._prompts([text], special=special)[0]

    def pairs(self, context: str, continuations: Sequence[str], *, special: bool = True) -> list[tuple[Ids, Ids]]:
        """Token ids of a context and of each of its continuations, none of which is empty."""
        bare = context.rstrip()
        spaces = context[len(bare) :]
        before, *whole = self._prompts([bare, *(bare + spaces + one for one in continuations)], special=special)
        # Where the tokenizer merges both into one token, none is left for the continuation: it is then encoded alone.
        behind = [ids[len(before) :].copy() for ids in whole]  # not a view, which would keep the whole row in memory
        alone = [
            ids if len(ids) else self.prompt(one, special=False) for ids, one in zip(behind, continuations, strict=True)
        ]
        return [(before, ids) for ids in alone]

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of some tokens, without special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _prompts(self, texts: Sequence[str], *, special: bool) -> list[Ids]:
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=special)
        return [np.array(_without_end(encoding) or [self.pad_id], dtype=np.int64) for encoding in encodings]


def _without_end(encoding: Any) -> list[int]:
    """The ids without special tokens after the text; those that start a text stay."""
    ids, special = list(encoding.ids), list(encoding.special_tokens_mask)
    while ids and special[len(ids) - 1] and not all(special[: len(ids)]):
        ids.pop()
    return ids
