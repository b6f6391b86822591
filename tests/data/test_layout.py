"""Texts in a batch: a row each, padded either way, or several in a row; nothing lost, nothing overlapping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.layout import Layout, pack

ROWS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 9, 9]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [9, 9, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_a_row_a_text_is_padded_on_its_side(side: str, ids: list[list[int]], mask: list[list[int]]) -> None:
    layout = Layout.padded([3, 1], side)
    assert layout.lay([np.array([5, 6, 7]), np.array([8])], 9).tolist() == ids
    assert layout.lay([np.ones(3), np.ones(1)], 0).tolist() == mask


def test_texts_go_to_the_first_row_that_has_room() -> None:
    assert pack([5, 4, 3, 2, 6], 8) == [[0, 2], [1, 3], [4]]
    layout = Layout.packed([5, 4, 3, 2, 6], 8)
    assert (layout.rows, layout.width) == (3, 8)
    assert layout.places == ((0, 0), (1, 0), (0, 5), (1, 4), (2, 0))


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, form=st.sampled_from(["left", "right", "packed"]), limit=st.integers(9, 20))
def test_every_token_lies_in_one_place_and_the_rest_is_padding(rows: list[list[int]], form: str, limit: int) -> None:
    texts = [np.array(row, dtype=np.int64) for row in rows]
    lengths = [len(row) for row in rows]
    layout = Layout.packed(lengths, limit) if form == "packed" else Layout.padded(lengths, form)
    ids, mask = layout.lay(texts, 99), layout.lay([np.ones_like(text) for text in texts], 0)
    assert ids.dtype == np.int64
    assert mask.sum() == sum(lengths)
    assert (ids[mask == 0] == 99).all()
    for (row, column), text in zip(layout.places, texts, strict=True):
        assert np.array_equal(ids[row, column : column + len(text)], text)
    assert layout.width <= (limit if form == "packed" else max(lengths))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=30), limit=st.integers(10, 25))
def test_packing_the_texts_of_some_rows_again_needs_no_more_rows(lengths: list[int], limit: int) -> None:
    """A micro-batch is some rows of a packed batch, laid out again by itself."""
    rows = pack(lengths, limit)
    for size in (1, 2, 3):
        for first in range(0, len(rows), size):
            group = [index for row in rows[first : first + size] for index in row]
            assert Layout.packed([lengths[index] for index in group], limit).rows <= size
