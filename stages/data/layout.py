"""Where texts are in a batch: one per row, padded left or right, or several per row.

Shapes: B rows, S columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """`rows` rows of `width` tokens; text i is in row `places[i][0]`, from column `places[i][1]` on."""

    rows: int
    width: int
    places: tuple[tuple[int, int], ...]

    @classmethod
    def padded(cls, lengths: Sequence[int], side: str) -> "Layout":
        """One row per text, as wide as the longest; `side` says where the padding goes."""
        width = max(lengths)
        places = ((row, 0 if side == "right" else width - length) for row, length in enumerate(lengths))
        return cls(len(lengths), width, tuple(places))

    @classmethod
    def packed(cls, lengths: Sequence[int], limit: int) -> "Layout":
        """Texts one after the other, in rows of at most `limit` tokens."""
        places = [(0, 0)] * len(lengths)
        bins = pack(lengths, limit)
        width = 0
        for row, members in enumerate(bins):
            column = 0
            for member in members:
                places[member] = (row, column)
                column += lengths[member]
            width = max(width, column)
        return cls(len(bins), width, tuple(places))

    def lay(self, texts: Sequence[np.ndarray], fill: int) -> np.ndarray:
        """(B, S) int64: each text (S_i,) in its place, `fill` elsewhere."""
        batch = np.full((self.rows, self.width), fill, dtype=np.int64)
        for (row, column), text in zip(self.places, texts, strict=True):
            batch[row, column : column + len(text)] = text
        return batch


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """First fit: each text goes to the first row that has room.  Indices of the texts of each row."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        row = next((row for row, left in enumerate(room) if length <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(limit)
        rows[row].append(index)
        room[row] -= length
    return rows
