"""What a report is made of, before it is HTML: sections with figures, tables and code; and how numbers are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stages.report.charts import Plot
from stages.run_view.view import Score

MOST_ROWS = 1000  # of a table; of more, the text above it says which are shown


@dataclass(frozen=True)
class Column:
    """Of a table; numbers are aligned to the right."""

    name: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of text; `folded` ones are opened by the reader."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    folded: bool = True


@dataclass(frozen=True)
class Figure:
    """A drawing, what it shows in words, and the numbers behind it.  `legend`: classes of marks, and what they mean."""

    key: str
    title: str
    text: str
    plot: Plot
    alt: str
    table: Table | None = None
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report under a heading of its own."""

    key: str
    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    codes: Sequence[Code] = ()


@dataclass(frozen=True)
class Headline:
    """A number that a reader looks for first."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """A whole page.  `warns`: whether something in `notes` is a reason for doubt."""

    title: str
    summary: str
    notes: Sequence[str]
    warns: bool
    headlines: Sequence[Headline] = field(default_factory=tuple)
    sections: Sequence[Section] = field(default_factory=tuple)


def columns(*names: str, text: int = 0) -> tuple[Column, ...]:
    """Columns of numbers, but for the first `text` ones."""
    return tuple(Column(name, numeric=number >= text) for number, name in enumerate(names))


def percent(share: float) -> str:
    """`92.3 %`, in one piece."""
    return f"{100 * share:.1f}\u00a0%"


def mebibytes(count: float) -> str:
    """A number of MiB, without its unit."""
    value = count / 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def compact(number: float) -> str:
    """`1.5 M`: a tick of an axis, or a large count."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size * (1 - 1e-9):
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def duration(seconds: float) -> str:
    """`12 s`, `40 min`, `3 h 5 min`, `82 h`"""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 600 else f"{minutes / 60:,.0f} h"


def score_number(score: Score) -> str:
    """The score alone."""
    return percent(score.value) if score.metric == "accuracy" else f"{score.value:.4g}"


def score_interval(score: Score) -> str:
    """Its 95 % interval."""
    if score.metric == "accuracy":
        return f"{100 * score.low:.1f}–{100 * score.high:.1f}\u00a0%"
    return f"{score.low:.4g}–{score.high:.4g}"


def short(digest: str) -> str:
    """As `log` prints it."""
    return digest[:19]


def several(count: int, one: str, many: str = "") -> str:
    """`1 round`, `2 rounds`"""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
