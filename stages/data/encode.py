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
from stages.data.model_folder import check_model_folder, refuse_pointer
from stages.data.rendering import prompt_all, render_all
from stages.data.template import Span, Template, choose_template, read_object, special_token, tokenizer_config
from stages.store.foreign import blamed_on, check_document

REMEMBERED_BYTES = 64 * 2**20
ENTRY_BYTES = 400  # two arrays, their record and its place


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
    """A tokenizer with the plan's length and padding, and a template.

    `prompt` are the settings with `template` decided: never "auto".
    """

    settings: EncodingSettings
    pad_id: int
    tokenizer: Any
    template: Template
    prompt: PromptSettings
    remembered: "Remembered | None" = None

    @classmethod
    def load(cls, model_dir: Path, settings: EncodingSettings, prompt: PromptSettings | None = None) -> "Encoder":
        """Read `tokenizer.json`, and the template that `prompt` asks for.

        Raises `BadInput` where there is no tokenizer or it cannot be read, `NotTrusted` where the chat template is not
        the one that the plan fixed.
        """
        from tokenizers import Tokenizer

        check_model_folder(model_dir)
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise BadInput(
                f"{model_dir} has no tokenizer.json",
                values={"expected": "a fast tokenizer"},
                hint="save it once with AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            )
        check_document(path)
        refuse_pointer(path)
        with blamed_on(path, "cannot be read", hint="copy it again"):
            tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_length)
        template, decided = choose_template(model_dir, prompt or PromptSettings())
        return cls(settings, _pad_id(model_dir, tokenizer), tokenizer, template, decided)

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

    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        rendered = render_all(self.template, examples)
        whole = self.prompt.learn == "all"
        encodings = self.tokenizer.encode_batch(
            [one.text for one in rendered], add_special_tokens=self.template.adds_special_tokens
        )
        return [
            self._encoded(encoding, None if whole else one.responses)
            for encoding, one in zip(encodings, rendered, strict=True)
        ]

    def encode_prompts(self, examples: Sequence[Example]) -> list[tuple[np.ndarray, bool]]:
        """Of each, token ids (S,) int64 of what precedes the response, the last `max_length`; whether there were more.

        Raises `BadInput` where the template does not fit an example.
        """
        prompts = prompt_all(self.template, examples)
        self.tokenizer.no_truncation()
        try:
            encodings = self.tokenizer.encode_batch(prompts, add_special_tokens=self.template.adds_special_tokens)
        finally:
            self.tokenizer.enable_truncation(self.settings.max_length)
        longest = self.settings.max_length
        rows = [np.array(encoding.ids or [self.pad_id], dtype=np.int64) for encoding in encodings]
        return [(ids[-longest:], len(ids) > longest) for ids in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encoded(self, encoding: Any, responses: Sequence[Span] | None) -> Encoded:
        # A text without tokens still needs one position; it gets the padding token.
        ids = np.array(encoding.ids or [self.pad_id], dtype=np.int64)
        in_loss = np.ones(len(ids), dtype=bool) if responses is None else _within(encoding.offsets, responses)
        return Encoded(ids, in_loss, bool(encoding.overflowing))


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """Which tokens start inside one of the spans of characters, (S,) bool.  A token without characters is in none."""
    begins = np.array([begin if begin < end else -1 for begin, end in offsets] or [-1])
    inside = np.zeros(len(begins), dtype=bool)
    for begin, end in spans:
        inside |= (begins >= begin) & (begins < end)
    return inside


def _pad_id(model_dir: Path, tokenizer: Any) -> int:
    """The model's padding token, else the tokenizer's, else the end-of-text token, as is common for decoders."""
    config = read_object(model_dir / "config.json")
    if isinstance(config.get("pad_token_id"), int):
        return int(config["pad_token_id"])
    token = special_token(tokenizer_config(model_dir).get("pad_token"))
    if token and tokenizer.token_to_id(token) is not None:
        return int(tokenizer.token_to_id(token))
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    return end if isinstance(end, int) else 0
