"""Texts to token ids, by the model's own `tokenizer.json`.

The `tokenizers` library alone: transformers' wrapper adds nothing that a fixed plan needs, and its import is memory
that a small device does not have.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import BadInput
from schemas.settings import EncodingSettings


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with the plan's length and padding."""

    settings: EncodingSettings
    pad_id: int
    tokenizer: Any

    @classmethod
    def load(cls, model_dir: Path, settings: EncodingSettings) -> "Encoder":
        """Read `tokenizer.json`.  Raises `BadInput` where there is none or it cannot be read."""
        from tokenizers import Tokenizer

        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise BadInput(
                f"{model_dir} has no tokenizer.json",
                values={"expected": "a fast tokenizer"},
                hint="save it once with AutoTokenizer.from_pretrained(…).save_pretrained(…)",
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BadInput(f"{path} cannot be read", values={"reason": type(error).__name__}) from None
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_length)
        return cls(settings, _pad_id(model_dir, tokenizer), tokenizer)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int64) of each text with special tokens, at most `max_length`, at least one."""
        encodings = self.tokenizer.encode_batch(list(texts))
        # A text that no token stands for still needs one real position; its token is the padding token.
        return [np.array(encoding.ids or [self.pad_id], dtype=np.int64) for encoding in encodings]


def pad_batch(rows: Sequence[np.ndarray], *, pad_id: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask (B, S), int64; S is the longest row."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[index, span], mask[index, span] = row, 1
    return ids, mask


def _pad_id(model_dir: Path, tokenizer: Any) -> int:
    """The padding token: of the model, else of the tokenizer, else the end-of-text token, as is common for decoders."""
    config = _read(model_dir / "config.json")
    if isinstance(config.get("pad_token_id"), int):
        return int(config["pad_token_id"])
    named = _read(model_dir / "tokenizer_config.json").get("pad_token")
    token = named.get("content") if isinstance(named, dict) else named
    if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
        return int(tokenizer.token_to_id(token))
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    return end if isinstance(end, int) else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
