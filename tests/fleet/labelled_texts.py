"""Labelled texts of a small vocabulary, whose words give the label away."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.data.encode import Encoder
from stages.data.load import Example

LABELS = ("tide", "root")
WORDS = {
    "tide": ["wave", "salt", "moon", "harbour", "gull", "current", "sand", "foam"],
    "root": ["soil", "leaf", "seed", "bark", "forest", "moss", "branch", "rain"],
}
FILLER = ["the", "a", "of", "and", "slow", "grey", "old", "near", "under", "again"]
SPECIAL = ["[PAD]", "[CLS]", "[UNK]"]


def texts(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Labelled texts whose words give the label away."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        label = LABELS[index % len(LABELS)]
        words = [draw.choice(WORDS[label] if draw.random() < 0.6 else FILLER) for _ in range(draw.randint(4, 12))]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def examples(rows: list[dict[str, str]]) -> list[Example]:
    """Rows as the stages read them, without their labels."""
    return [Example(row["text"], None) for row in rows]


def token_ids(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """Plain texts as the stages encode them."""
    return [one.ids for one in encoder.encode_examples([Example(text, None) for text in texts])]


def save_texts(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
