"""Exact match and F1 of DROP, as the official script of AllenAI computes them (`drop_eval.py`, arXiv 1903.00161).

An answer and a reference are spans; a span is a bag (a set) of normalised words.  Each span of the reference is
aligned with at most one of the answer so that the F1 of the bags is largest in sum; that sum is divided by the larger
number of spans and rounded to two digits.  Bags align only where the reference's has no number, or they share one.
"""

import re
import string
from collections.abc import Sequence

import numpy as np

from stages.suites.questions import Spans

Bag = frozenset[str]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def drop_scores(answer: str | Spans, references: Sequence[Spans]) -> tuple[float, float]:
    """(exact match, F1) against the best of the references: the best of each, as in the official script."""
    pairs = [drop_pair(answer, reference) for reference in references]
    return max((em for em, _ in pairs), default=0.0), max((f1 for _, f1 in pairs), default=0.0)


def drop_pair(answer: str | Spans, reference: Spans) -> tuple[float, float]:
    """(exact match, F1) of one answer against one reference."""
    given, right = _normalised_spans(answer), _normalised_spans(reference)
    same = set(given) == set(right) and len(given) == len(right)
    gains = [[_f1(_bag(one), _bag(other)) for one in given] for other in right]
    aligned = [*best_alignment(gains), *[0.0] * (len(given) - len(right))]
    return float(same), float(np.round(np.mean(aligned), 2))  # numpy's rounding: 0.015 is 0.02, not 0.01


def normalise(span: str) -> str:
    """Words separated by spaces and hyphens: lower case, no punctuation, numbers as floats, no articles."""
    parts = (_normalise_word(word.lower()) for word in re.split(" |-", span))
    return " ".join(part for part in parts if part).strip()


def _normalise_word(word: str) -> str:
    if not _is_number(word):
        word = word.translate(PUNCTUATION)
    if _is_number(word):
        word = str(float(word))
    return " ".join(ARTICLES.sub(" ", word).split())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _normalised_spans(spans: str | Spans) -> list[str]:
    return [normalise(span) for span in ((spans,) if isinstance(spans, str) else spans)]


def _bag(span: str) -> Bag:
    return frozenset(span.split())


def _f1(answer: Bag, reference: Bag) -> float:
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & answer:
        return 0.0
    common = len(answer & reference)
    precision = common / len(answer) if answer else 1.0
    recall = common / len(reference) if reference else 1.0
    return 2 * precision * recall / (precision + recall) if precision or recall else 0.0


def best_alignment(gains: Sequence[Sequence[float]]) -> list[float]:
    """The gain of each row (R,) where each takes one column of (R, C) at most, so that the sum is largest.

    The Hungarian method by shortest augmenting paths (Kuhn 1955; Jonker & Volgenant 1987): exact, in R² · C steps
    where R is the smaller side.  A written answer is one span, so in a benchmark that side is 1.
    """
    if len(gains) <= len(gains[0]):
        return [gains[row][column] for row, column in enumerate(_assign([[-gain for gain in row] for row in gains]))]
    rows = _assign([[-gain for gain in column] for column in zip(*gains, strict=True)])
    return [gains[row][rows.index(row)] if row in rows else 0.0 for row in range(len(gains))]


def _assign(costs: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row, for the smallest sum of costs (R, C), R ≤ C."""
    rows, columns = len(costs), len(costs[0])
    potential_row, potential_column = [0.0] * rows, [0.0] * (columns + 1)
    holder = [-1] * (columns + 1)  # the row that holds a column; the last column is where each search begins
    for row in range(rows):
        holder[columns] = row
        free, came_from = _augment(costs, holder, potential_row, potential_column)
        while free != columns:
            holder[free], free = holder[came_from[free]], came_from[free]
    taken = [-1] * rows
    for column in range(columns):
        if holder[column] >= 0:
            taken[holder[column]] = column
    return taken


def _augment(
    costs: Sequence[Sequence[float]], holder: list[int], potential_row: list[float], potential_column: list[float]
) -> tuple[int, list[int]]:
    """A shortest path from the starting row to a free column: that column, and where each was reached from."""
    columns = len(costs[0])
    nearest, came_from, done = [float("inf")] * columns, [columns] * columns, [False] * (columns + 1)
    current = columns
    while holder[current] >= 0:
        done[current] = True
        row = holder[current]
        for column in (column for column in range(columns) if not done[column]):
            reduced = costs[row][column] - potential_row[row] - potential_column[column]
            if reduced < nearest[column]:
                nearest[column], came_from[column] = reduced, current
        closest = min((column for column in range(columns) if not done[column]), key=nearest.__getitem__)
        step = nearest[closest]
        for column in range(columns + 1):
            if done[column]:
                potential_row[holder[column]] += step
                potential_column[column] -= step
            elif column < columns:
                nearest[column] -= step
        current = closest
    return current, came_from
