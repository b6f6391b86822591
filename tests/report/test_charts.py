"""Where a figure puts things: inside its box, at round numbers, and the same each time."""

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.report.charts import (
    HEIGHT,
    LABEL_HEIGHT,
    MOST_MARKS,
    WIDTH,
    Point,
    Series,
    bar_plot,
    grid_plot,
    line_plot,
    thinned,
    ticks,
)
from stages.report.parts import compact, duration, mebibytes

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"may_be_log": True, "y_bounds": (0.0, 1e300)},
    {"y_bounds": (0.0, 1.0)},
)
NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


@given(low=NUMBERS, width=st.floats(1e-6, 1e9))
def test_ticks_are_inside_in_order_and_few(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-9 * max(abs(low), 1):
        return
    found = ticks(low, high)
    assert len(found) <= 7
    assert found == sorted(set(found))
    spare = 1e-6 * (high - low) + 1e-9 * abs(low)
    assert all(low - spare <= at <= high + spare for at in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 6, [0, 1, 2, 3, 4, 5, 6]), (-0.05, 0.05, [-0.04, -0.02, 0, 0.02, 0.04])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@given(values=st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40), kind=st.sampled_from(KINDS))
def test_whatever_the_values_nothing_is_drawn_outside_the_box(values: list[float], kind: dict[str, Any]) -> None:
    points = [Point(number, value, "", value - 1, value + 1) for number, value in enumerate(values)]
    drawn = line_plot(
        [Series("a name that is far too long for its place", points), Series("b", points[:1])],
        x_label="x",
        x_format=compact,
        y_format=compact,
        named=True,
        **kind,
    )
    assert all(0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT for mark in drawn.marks)
    assert all(0 <= label.x <= WIDTH and -5 <= label.y <= HEIGHT for label in drawn.labels)
    for shape in drawn.shapes:
        for x, y in re.findall(r"[ML](-?[0-9.]+) (-?[0-9.]+)", shape.d):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= HEIGHT


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    series = [Series(f"run {number}", [Point(0, 0, ""), Point(1, 0.5, "")]) for number in range(8)]
    drawn = line_plot(series, x_label="x", x_format=compact, y_format=compact, named=True)
    heights = sorted(label.y for label in drawn.labels if label.text.startswith("run "))
    assert len(heights) == 8
    assert all(below - above >= LABEL_HEIGHT - 0.1 for above, below in pairwise(heights))


def test_large_values_share_a_logarithmic_axis() -> None:
    points = [Point(0, 15_574, ""), Point(1, 20, ""), Point(2, 15, "")]
    drawn = line_plot([Series("", points)], x_label="x", x_format=compact, y_format=compact, may_be_log=True)
    first, second, third = (mark.y for mark in drawn.marks)
    assert third - second > 0.02 * (second - first)
    assert {"10 k", "1 k", "100"} <= {label.text for label in drawn.labels}


def test_of_many_points_the_first_and_the_last_are_kept() -> None:
    assert thinned([1, 2, 3]) == [1, 2, 3]
    found = thinned(range(10_000))
    assert (len(found), found[0], found[-1]) == (MOST_MARKS, 0, 9_999)


def test_a_grid_of_many_columns_is_a_path_for_each_style() -> None:
    cells = [(column, 1, 0, 2, f"c{column % 2}") for column in range(900)]
    drawn = grid_plot(cells, columns=900, rows=4096, x_label="round", y_label="layer")
    assert [shape.style for shape in drawn.shapes] == ["cell c0", "cell c1", "axis"]


def test_bars_of_one_number_have_an_axis() -> None:
    drawn = bar_plot([(3, 1000, "1,000 devices in 3 rounds")], x_label="updates", y_label="devices")
    assert {"3", "200", "1,000"} <= {label.text for label in drawn.labels}


def test_numbers_are_written_for_people() -> None:
    assert [compact(number) for number in (0, 0.25, 999, 1000, 1_234_567)] == ["0", "0.25", "999", "1 k", "1.235 M"]
    assert [duration(seconds) for seconds in (0.5, 12, 2400, 11_100, 294_000)] == [
        *("0.5 s", "12 s", "40 min", "3 h 5 min", "82 h"),
    ]
    assert [mebibytes(count) for count in (2**19, 2**20, 700 * 2**20, 2**33)] == ["0.5", "1", "700", "8,192"]
