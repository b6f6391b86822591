"""The benchmarks by name: how their files are read, how an answer is scored, and what a result contains.

MMLU and CRASS give an accuracy; BBH exact match; DROP exact match and F1; rouge ROUGE-L.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from schemas.benchmark import GroupScore, Score
from schemas.errors import BadInput
from stages.data.template import Template
from stages.intervals import macro_mean_with_interval, mean_with_interval
from stages.suites.bbh import read_bbh
from stages.suites.crass import read_crass
from stages.suites.drop import read_drop
from stages.suites.drop_scores import drop_scores
from stages.suites.mmlu import MOST_SHOTS, read_mmlu
from stages.suites.questions import Choice, OpenQuestion, Question, cut_at, first_of_each_group
from stages.suites.rouge import ALPACA, read_rouge
from stages.suites.scores import exact_match, rouge_l

BenchmarkName = Literal["mmlu", "crass", "bbh", "drop", "rouge"]
NAMES: tuple[BenchmarkName, ...] = get_args(BenchmarkName)
DEFAULT_SHOTS: dict[BenchmarkName, int | None] = {"mmlu": MOST_SHOTS, "crass": 0, "bbh": None, "drop": 0, "rouge": 0}

Scores = dict[str, float]  # by metric


@dataclass(frozen=True)
class Marked:
    """The scores of one answer, and the group of its question."""

    group: str
    scores: Scores


def read_questions(
    benchmark: BenchmarkName,
    path: Path,
    *,
    shots: int | None = None,
    limit: int | None = None,
    template: Template = ALPACA,
) -> list[Question]:
    """The first `limit` questions of each group (None: all).

    `shots` None: as published.  `template` renders the instructions of the user's own data.  Raises `BadInput`.
    """
    for flag, value, least in (("--shots", shots, 0), ("--limit", limit, 1)):
        if value is not None and value < least:
            raise BadInput(f"{flag} is too small", values={"given": value, "at least": least})
    count = DEFAULT_SHOTS[benchmark] if shots is None else shots
    questions: Sequence[Question]
    match benchmark:
        case "mmlu":
            questions = read_mmlu(path, count or 0)
        case "crass":
            questions = read_crass(path, count or 0)
        case "bbh":
            questions = read_bbh(path, count)
        case "drop":
            questions = read_drop(path, count or 0)
        case "rouge":
            questions = read_rouge(path, count or 0, template)
    return first_of_each_group(questions, limit)


def mark_choice(question: Choice, likelihoods: Sequence[float]) -> Marked:
    """Accuracy: whether the likeliest choice (the first of equals) is the right one; log-likelihoods in nats."""
    chosen = int(np.argmax(np.asarray(likelihoods)))
    return Marked(question.group, {"accuracy": float(chosen == question.answer_index)})


def mark_answer(benchmark: BenchmarkName, question: OpenQuestion, answer: str) -> Marked:
    """The scores of a written answer, truncated where it should have stopped."""
    return Marked(question.group, MARKS[benchmark](cut_at(answer, question.stop), question))


def summarise(marked: Sequence[Marked]) -> tuple[Score, ...]:
    """Each metric over all answers, as a mean over groups, and for each group; sorted by name."""
    by_metric: dict[str, dict[str, list[float]]] = {}
    for one in marked:
        for metric, score in one.scores.items():
            by_metric.setdefault(metric, {}).setdefault(one.group, []).append(score)
    return tuple(_score(metric, by_metric[metric]) for metric in sorted(by_metric))


def _score(metric: str, groups: Mapping[str, Sequence[float]]) -> Score:
    values = {name: np.array(groups[name]) for name in sorted(groups)}
    return Score(
        metric=metric,
        overall=mean_with_interval(np.concatenate(list(values.values()))),
        macro=macro_mean_with_interval(list(values.values())),
        groups=tuple(
            GroupScore(name=name, count=len(found), value=float(found.mean())) for name, found in values.items()
        ),
    )


def _drop(answer: str, question: OpenQuestion) -> Scores:
    match, f1 = drop_scores(answer.strip(), question.references)
    return {"exact-match": match, "f1": f1}


MARKS: dict[BenchmarkName, Callable[[str, OpenQuestion], Scores]] = {
    "bbh": lambda answer, question: {"exact-match": exact_match(answer, question.references)},
    "drop": _drop,
    "rouge": lambda answer, question: {"rouge-l": rouge_l(answer, question.references)},
}
