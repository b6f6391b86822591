"""Figures as numbers: where in an SVG each line, band, dot and label goes.  The same inputs give the same places.

Every figure is as wide as a phone, so that its text has one size everywhere.  Colours and strokes are classes of the
style sheet.  x and y of a `Series` are data; everything in a `Plot` is in units of its view box.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 16, 44
CHARACTER = 9.0  # most that a character of a label takes on average, on a phone
LABEL_HEIGHT = 15
LONGEST_LABEL = 16  # characters of a name beside a line or a row
MOST_MARKS = 400  # of a series that a pointer finds; more are thinned out evenly
MOST_DOTS = 30  # on a line: of more, only the one under the pointer is drawn
MOST_ROWS = 24  # that have their names beside them
LOG_FROM = 20.0  # the ratio of two values of an axis from which it is logarithmic where it may be

Format = Callable[[float], str]
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A value with its interval, and what is said of it."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points from left to right; `style` is a class: `c0` … `c3`, with `dashed`."""

    name: str
    points: Sequence[Point]
    style: str = "c0"


@dataclass(frozen=True)
class Shape:
    """A path, with its classes."""

    d: str
    style: str


@dataclass(frozen=True)
class Mark:
    """A dot; a pointer near it is told its text."""

    x: float
    y: float
    style: str
    text: str


@dataclass(frozen=True)
class Label:
    """Text in a figure."""

    x: float
    y: float
    text: str
    style: str = ""
    anchor: str = "start"


@dataclass(frozen=True)
class Plot:
    """A drawing."""

    shapes: tuple[Shape, ...]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Scale:
    """From data to places: `low` is at `start`, `high` at `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; what is beyond an end is at it."""
        bent = math.log if self.log else float
        low, high = bent(self.low), bent(self.high)
        share = (min(max(bent(value), low), high) - low) / (high - low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """Round numbers on the axis."""
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        return [value for value in found if self.low <= value <= self.high]


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """At most so many multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    x_format: Format,
    y_format: Format,
    y_bounds: tuple[float, float] | None = None,
    may_be_log: bool = False,
    rules: Sequence[tuple[float, str]] = (),
    named: bool = False,
    whole: bool = False,
) -> Plot:
    """Lines over two axes, with their intervals as bands and their names at their ends where they are `named`.

    `rules`: horizontal lines with their labels.  `y_bounds`: of values that have some, which the axis never leaves.
    `whole`: x is a whole number.
    """
    labels_width = max((CHARACTER * len(shortened(one.name)) for one in series), default=0) if named else 0
    points = [point for one in series for point in one.points]
    heights = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    heights += [height for height, _ in rules]
    if y_bounds is not None:
        heights = [min(max(height, y_bounds[0]), y_bounds[1]) for height in heights]
    log = may_be_log and min(heights) > 0 and max(heights) / min(heights) > LOG_FROM
    bottom, top = HEIGHT - BOTTOM, TOP
    y = Scale(*_bounds(heights, y_bounds, log=log), bottom, top, log=log)
    x = Scale(*_extent([point.x for point in points]), LEFT, WIDTH - RIGHT - labels_width)
    shapes, marks, labels = _axes(x, y, x_label, x_format, y_format, whole=whole)
    for height, text in rules:
        shapes.append(Shape(f"M{LEFT} {y(height):g}H{x.stop:g}", "rule"))
        labels.append(Label(x.stop, y(height) - 5, text, "quiet", "end"))
    ends: list[Label] = []
    for one in series:
        places = [(x(point.x), y(point.y)) for point in one.points]
        band = [(x(p.x), y(p.low), y(p.high)) for p in one.points if p.low is not None and p.high is not None]
        if len(band) > 1:
            outline = [(at, high) for at, _, high in band] + [(at, low) for at, low, _ in reversed(band)]
            shapes.append(Shape(_path(outline) + "Z", f"band {one.style}"))
        if len(places) > 1:
            shapes.append(Shape(_path(places), f"line {one.style}"))
        marks += [
            Mark(x(point.x), y(point.y), f"{one.style}{' hidden' if len(places) > MOST_DOTS else ''}", point.text)
            for point in thinned(one.points)
        ]
        if named and places:
            ends.append(Label(places[-1][0] + 7, places[-1][1] + 4, shortened(one.name), one.style))
    return Plot(tuple(shapes), tuple(marks), (*labels, *_apart(ends)))


def grid_plot(
    cells: Iterable[tuple[int, int, int, int, str]],
    *,
    columns: int,
    rows: int,
    x_label: str,
    y_label: str,
    names: Sequence[str] = (),
    first_column: int = 1,
) -> Plot:
    """Filled rectangles on a grid.  A cell: first column, columns, first row from below, rows, classes.

    `names`: of the rows, from below; without them rows are numbered from 0.
    """
    left = LEFT if not names else max(LEFT, 14 + CHARACTER * max(len(shortened(name)) for name in names))
    height = HEIGHT if not names else max(120, TOP + BOTTOM + LABEL_HEIGHT * rows)
    across, up = (WIDTH - RIGHT - left) / columns, (height - TOP - BOTTOM) / rows
    gap_x, gap_y = (min(1.5, size / 5) if size > 4 else 0.0 for size in (across, up))
    bottom = height - BOTTOM
    merged: dict[str, list[str]] = {}
    for column, wide, row, high, style in cells:
        at, top = left + column * across, bottom - (row + high) * up
        size = f"h{wide * across - gap_x:.1f}v{high * up - gap_y:.1f}h-{wide * across - gap_x:.1f}z"
        merged.setdefault(style, []).append(f"M{at:.1f} {top:.1f}{size}")
    shapes = [Shape("".join(found), f"cell {style}") for style, found in merged.items()]
    shapes.append(Shape(f"M{left:g} {bottom}H{WIDTH - RIGHT}", "axis"))
    labels = [
        Label(left + (number - first_column + 0.5) * across, bottom + 16, f"{number:g}", "tick", "middle")
        for number in _whole_ticks(first_column, first_column + columns - 1)
    ]
    shown = [(row, shortened(name)) for row, name in enumerate(names)] or [
        (int(row), f"{row:g}") for row in _whole_ticks(0, rows - 1)
    ]
    labels += [Label(left - 8, bottom - (row + 0.5) * up + 4, text, "tick", "end") for row, text in shown]
    labels += _axis_names(left, WIDTH - RIGHT, bottom, x_label, y_label)
    return Plot(tuple(shapes), (), tuple(labels), height=math.ceil(height))


def rows_plot(rows: Sequence[tuple[str, float, float | None, str]], *, x_label: str, x_format: Format) -> Plot:
    """A row for each name: a dot at what was measured, a ring at what was predicted where it was, joined by a line."""
    left = 14 + CHARACTER * max(len(shortened(name)) for name, *_ in rows)
    height = TOP + BOTTOM + (LABEL_HEIGHT + 5) * len(rows)
    values = [value for _, measured, predicted, _ in rows for value in (measured, predicted) if value is not None]
    x = Scale(0, _bounds([0, *values], None)[1], left, WIDTH - RIGHT - 8)
    shapes, marks = [], []
    labels = [Label(x(at), height - BOTTOM + 16, x_format(at), "tick", "middle") for at in x.ticks()]
    shapes += [Shape(f"M{x(at):g} {TOP}V{height - BOTTOM}", "gridline") for at in x.ticks()]
    for number, (name, measured, predicted, text) in enumerate(rows):
        y = TOP + (LABEL_HEIGHT + 5) * (number + 0.5)
        labels.append(Label(left - 8, y + 4, shortened(name), "tick", "end"))
        if predicted is not None:
            shapes.append(Shape(f"M{x(predicted):g} {y:g}H{x(measured):g}", "link"))
            marks.append(Mark(x(predicted), y, "c1 ring", text))
        marks.append(Mark(x(measured), y, "c0", text))
    labels += _axis_names(left, WIDTH - RIGHT, height - BOTTOM, x_label, "")
    return Plot(tuple(shapes), tuple(marks), tuple(labels), height=math.ceil(height))


def rank_plot(series: Sequence[Series], *, x_label: str, y_format: Format, from_zero: bool) -> Plot:
    """Dots over ranks; a series of one style each, drawn in order."""
    points = [point for one in series for point in one.points]
    heights = [point.y for point in points]
    low, high = _bounds([0.0, *heights] if from_zero else heights, None)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    x = Scale(*_extent([point.x for point in points]), LEFT + 6, WIDTH - RIGHT - 6)
    shapes, marks, labels = _axes(x, y, x_label, lambda value: f"{value:,.0f}", y_format, whole=True, left=LEFT)
    for one in series:
        small = " small" if len(one.points) > MOST_ROWS else ""
        marks += [Mark(x(point.x), y(point.y), f"{one.style}{small}", point.text) for point in thinned(one.points)]
    return Plot(tuple(shapes), tuple(marks), tuple(labels))


def bar_plot(bars: Sequence[tuple[int, int, str]], *, x_label: str, y_label: str) -> Plot:
    """Counts over whole numbers.  A bar: the number, the count, what is said of it."""
    first, last = bars[0][0], bars[-1][0]
    y = Scale(0, _bounds([0, *(count for _, count, _ in bars)], None)[1], HEIGHT - BOTTOM, TOP)
    across = (WIDTH - RIGHT - LEFT) / (last - first + 1)
    x = Scale(first, last + 1, LEFT, WIDTH - RIGHT)
    shapes = [Shape(f"M{LEFT} {y(at):g}H{WIDTH - RIGHT}", "gridline") for at in y.ticks()]
    gap = min(2.0, across / 5)
    shapes.append(
        Shape(
            "".join(f"M{x(at):g} {y.start}V{y(count):g}h{across - gap:.1f}V{y.start}z" for at, count, _ in bars),
            "cell c0",
        )
    )
    shapes.append(Shape(f"M{LEFT} {y.start}H{WIDTH - RIGHT}", "axis"))
    marks = [Mark(round(x(at) + across / 2, 1), y(count), "hidden", text) for at, count, text in thinned(bars)]
    labels = [
        Label(round(x(at) + across / 2, 1), y.start + 16, f"{at:g}", "tick", "middle")
        for at in _whole_ticks(first, last)
    ]
    labels += [Label(LEFT - 8, y(at) + 4, f"{at:,.0f}", "tick", "end") for at in y.ticks() if at == int(at)]
    labels += _axis_names(LEFT, WIDTH - RIGHT, y.start, x_label, y_label)
    return Plot(tuple(shapes), tuple(marks), tuple(labels))


def shortened(name: str) -> str:
    """A name as it fits beside a figure."""
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def thinned(points: Sequence[T], most: int = MOST_MARKS) -> list[T]:
    """At most so many of them, the first and the last among them, evenly spaced."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(number * step)] for number in range(most)]


def _axes(
    x: Scale, y: Scale, x_label: str, x_format: Format, y_format: Format, *, whole: bool, left: float | None = None
) -> tuple[list[Shape], list[Mark], list[Label]]:
    start = x.start if left is None else left
    shapes = [Shape(f"M{start:g} {y(at):g}H{x.stop:g}", "gridline") for at in y.ticks()]
    shapes.append(Shape(f"M{start:g} {y.start:g}H{x.stop:g}", "axis"))
    labels = [Label(start - 8, y(at) + 4, y_format(at), "tick", "end") for at in y.ticks()]
    places = _whole_ticks(x.low, x.high) if whole else ticks(x.low, x.high, most=5)
    labels += [Label(x(at), y.start + 16, x_format(at), "tick", "middle") for at in places]
    labels += _axis_names(start, x.stop, y.start, x_label, "")
    return shapes, [], labels


def _axis_names(left: float, right: float, bottom: float, x_label: str, y_label: str) -> list[Label]:
    labels = [Label(round((left + right) / 2, 1), bottom + 36, x_label, "quiet", "middle")]
    return [*labels, Label(2, TOP - 4, y_label, "quiet")] if y_label else labels


def _whole_ticks(low: float, high: float) -> list[float]:
    if high <= low:
        return [low]
    return [at for at in ticks(low, high, most=min(8, max(1, math.ceil(high - low)))) if at == int(at)]


def _extent(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    around = max(0.5, abs(low) / 100)  # so that it is not lost beside a large value
    return (low, high) if high > low else (low - around, high + around)


def _bounds(values: Sequence[float], within: tuple[float, float] | None, *, log: bool = False) -> tuple[float, float]:
    """The ends of an axis: a little beyond the values, and never beyond what they can be."""
    low, high = _extent(values)
    if log:
        return low / 1.1, high * 1.1
    spare = 0.06 * (high - low)
    low, high = (low if low == 0 else low - spare), high + spare
    return (max(low, within[0]), min(high, within[1])) if within else (low, high)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _apart(labels: Sequence[Label]) -> list[Label]:
    """Labels one below the other, moved down as far as they would overlap, and up again from the lower end."""
    placed: list[Label] = []
    lowest = HEIGHT - BOTTOM
    ordered = sorted(labels, key=lambda label: label.y)
    room = lowest - LABEL_HEIGHT * (len(ordered) - 1)
    y = -math.inf
    for number, label in enumerate(ordered):
        y = min(max(label.y, y + LABEL_HEIGHT), room + LABEL_HEIGHT * number)
        placed.append(Label(label.x, round(y, 1), label.text, label.style, label.anchor))
    return placed
