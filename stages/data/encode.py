"""Texts to token ids, by the model's own `tokenizer.json`.

Only the `tokenizers` library is used: transformers' wrapper adds nothing that a fixed plan needs, and importing it
takes memory that a small device does not have.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from schemas.base import canonical_json
from schemas.errors import BadInput
from schemas.settings import EncodingSettings, PromptSettings
from stages.data.load import Example
from stages.data.rendering import render_each
from stages.data.template import Rendered, Template, choose_template, placed
from stages.data.tokenizer import ModelTokenizer
from stages.process import intent

REMEMBERED_BYTES = 64 * 2**20
ENTRY_BYTES = 400  # two arrays, their record and its place

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids (S,) int64 of an example, which of them are in the loss (S,) bool, and whether it was truncated."""

    ids: np.ndarray
    in_loss: np.ndarray
    truncated: bool


class Remembered:
    """Encoded examples by digests of them, up to `limit_bytes` of token ids; those after are encoded every time."""

    def __init__(self, limit_bytes: int = REMEMBERED_BYTES) -> None:
        self._left_bytes = limit_bytes
        self._encoded: dict[bytes, Encoded] = {}

    def get(self, example: Example) -> Encoded | None:
        """What it was encoded to."""
        return self._encoded.get(_digest(example))

    def add(self, example: Example, encoded: Encoded) -> Encoded:
        """Remember it if there is room; the same."""
        size = encoded.ids.nbytes + encoded.in_loss.nbytes + ENTRY_BYTES
        if size <= self._left_bytes:
            self._left_bytes -= size
            self._encoded[_digest(example)] = encoded
        return encoded


def _digest(example: Example) -> bytes:
    """Of all that is encoded of it, so not of its label: texts are long, and need not be kept."""
    return hashlib.blake2b(canonical_json([example.text, example.turns]), digest_size=32).digest()


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with the plan's length and padding, and a template.  It does not truncate where the length is `auto`.

    `prompt` are the settings with `template` decided: never "auto".  `end_ids`: the tokens that end a text.
    """

    settings: EncodingSettings
    pad_id: int
    tokenizer: Any
    template: Template
    prompt: PromptSettings
    remembered: "Remembered | None" = None
    end_ids: frozenset[int] = frozenset()

    @classmethod
    def load(cls, model_dir: Path, settings: EncodingSettings, prompt: PromptSettings | None = None) -> "Encoder":
        """Read `tokenizer.json` and what is beside it, and the template that `prompt` asks for.

        Raises `BadInput` where there is no tokenizer or a file cannot be read, `NotTrusted` where the chat template is
        not the one that the plan fixed.
        """
        own = ModelTokenizer.load(model_dir)
        intent.will_read(model_dir, "model")
        own.tokenizer.no_padding()
        template, decided = choose_template(own, prompt or PromptSettings())
        return cls(settings, own.pad_id, own.tokenizer, template, decided, end_ids=own.end_ids)._truncating()

    def reading(self, settings: EncodingSettings) -> "Encoder":
        """The same with the length of `settings` decided; from now on the tokenizer truncates at it."""
        return self if settings == self.settings else replace(self, settings=settings, remembered=None)._truncating()

    def encode_examples(self, examples: Sequence[Example]) -> list[Encoded]:
        """Examples rendered by the template and encoded: at most `max_length` tokens of each, and at least one.

        Raises `BadInput` where the template does not fit an example.
        """
        if self.remembered is None:
            return self._encode(examples)
        found = [self.remembered.get(example) for example in examples]
        unknown = [example for example, one in zip(examples, found, strict=True) if one is None]
        encoded = iter(self._encode(unknown) if unknown else ())
        return [
            one or self.remembered.add(example, next(encoded)) for example, one in zip(examples, found, strict=True)
        ]

    def remembering(self, other: "Encoder | None" = None) -> "Encoder":
        """The same for one that reads the same texts many times, with what a like `other` remembers."""
        alike = other is not None and (other.settings, other.prompt) == (self.settings, self.prompt)
        return replace(self, remembered=other.remembered if other is not None and alike else Remembered())

    def _truncating(self) -> "Encoder":
        if self.settings.max_length == "auto":  # what a text needs is not decided
            self.tokenizer.no_truncation()
        else:
            self.tokenizer.enable_truncation(self.settings.max_length)
        return self

    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        rendered = _rendered(self.template, self.prompt, examples)
        encodings = self._tokens([one.text for one in rendered], examples)
        return [self._encoded(encoding, one.responses) for encoding, one in zip(encodings, rendered, strict=True)]

    def _tokens(self, texts: Sequence[str], examples: Sequence[Example]) -> list[Any]:
        """The tokenizer's encodings.  Raises `BadInput`, which names the first text that has none."""
        special = self.template.adds_special_tokens
        try:
            encodings: list[Any] = self.tokenizer.encode_batch(list(texts), add_special_tokens=special)
            return encodings
        except Exception as error:  # the library raises bare Exception
            if len(texts) > 1:
                return [self._tokens([text], [one])[0] for text, one in zip(texts, examples, strict=True)]
            with placed(examples[0]):
                raise BadInput(
                    "the tokenizer cannot encode this text",
                    values={"length": f"{len(texts[0])} characters", "reason": type(error).__name__},
                    hint="it holds characters that the vocabulary lacks, and there is no unk_token: remove the text",
                ) from None

    def encode_prompts(self, examples: Sequence[Example]) -> list[tuple[np.ndarray, bool]]:
        """Of each, token ids (S,) int64 of what precedes the response, the last `max_length`; whether there were more.

        Raises `BadInput` as `encode_examples` does.
        """
        texts = render_each(self.template, self.template.prompt, examples)
        most = self.settings.most_tokens
        self.tokenizer.no_truncation()
        try:
            encodings = self._tokens(texts, examples)
        finally:
            self._truncating()
        rows = [np.array(encoding.ids or [self.pad_id], dtype=np.int64) for encoding in encodings]
        return [(ids[-most:], len(ids) > most) for ids in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encoded(self, encoding: Any, responses: Sequence[Span] | None) -> Encoded:
        # A text without tokens still needs one position; it gets the padding token.
        ids = np.array(encoding.ids or [self.pad_id], dtype=np.int64)
        in_loss = np.ones(len(ids), dtype=bool) if responses is None else _within(encoding.offsets, responses)
        return Encoded(ids, in_loss, bool(encoding.overflowing))


def check_rendering(model_dir: Path, prompt: PromptSettings, examples: Sequence[Example]) -> None:
    """Every example can be rendered, without encoding it.  Raises `BadInput`, which names the first that cannot."""
    template, _ = choose_template(ModelTokenizer.load(model_dir), prompt)
    _rendered(template, prompt, examples)


def _rendered(template: Template, prompt: PromptSettings, examples: Sequence[Example]) -> list[Rendered]:
    if prompt.learn == "all":
        return [Rendered(text, None) for text in render_each(template, template.text, examples)]
    return render_each(template, template.render, examples)


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """Which tokens start inside one of the spans of characters, (S,) bool.  A token without characters is in none."""
    begins = np.array([begin if begin < end else -1 for begin, end in offsets] or [-1])
    inside = np.zeros(len(begins), dtype=bool)
    for begin, end in spans:
        inside |= (begins >= begin) & (begins < end)
    return inside
