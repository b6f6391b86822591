"""Questions of benchmarks: a choice between given answers, or an answer in the model's own words."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.base import canonical_json

Spans = tuple[str, ...]  # an answer in one or several parts


@dataclass(frozen=True)
class Choice:
    """A prompt and its possible continuations, one of them right.

    A continuation starts with the space before it, as the tokens of words do.
    """

    prompt: str
    choices: tuple[str, ...]
    answer_index: int
    group: str

    def __repr__(self) -> str:
        return f"Choice({self.group}, {len(self.prompt)} characters, {len(self.choices)} choices)"


@dataclass(frozen=True)
class OpenQuestion:
    """A prompt and the answers that count as right, each in one or several spans.

    An answer ends before the first of `stop`, and has at most `most_tokens`.  `adds_special_tokens`: whether the
    tokenizer adds its own to the prompt (a chat template writes them itself).
    """

    prompt: str
    references: tuple[Spans, ...]
    group: str
    stop: tuple[str, ...]
    most_tokens: int = 64
    adds_special_tokens: bool = True

    def __repr__(self) -> str:
        return f"OpenQuestion({self.group}, {len(self.prompt)} characters, {len(self.references)} references)"


Question = Choice | OpenQuestion


def questions_digest(benchmark: str, questions: Sequence[Question]) -> str:
    """SHA-256 over everything that is asked and what counts as right, in order."""
    digest = hashlib.sha256(canonical_json(["chainctl benchmark", benchmark]))
    for question in questions:
        match question:
            case Choice():
                right: object = [list(question.choices), question.answer_index]
            case OpenQuestion():
                right = [list(map(list, question.references)), list(question.stop), question.most_tokens]
        digest.update(canonical_json([question.group, question.prompt, right]))
    return f"sha256:{digest.hexdigest()}"


def first_of_each_group(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each group (None: all), in order."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.group] = seen.get(question.group, 0) + 1
        if limit is None or seen[question.group] <= limit:
            kept.append(question)
    return kept


def cut_at(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first occurrence of any of `stop`."""
    ends = [text.find(mark) for mark in stop if mark in text]
    return text[: min(ends)] if ends else text
