"""DROP (Dua et al. 2019, arXiv 1903.00161) as AllenAI publishes it: `drop_dataset_dev.json`.

{passage id: {"passage": …, "qa_pairs": [{"question": …, "answer": {"number", "date", "spans"}, "validated_answers"}]}}

Any of the validated answers counts as right.  Groups are the kinds of answer that the official script reports:
number, date, span, spans.  Asked as in InstructEval (arXiv 2306.04757): passage, question, "Answer:".  Shots are the
first questions of the first passages, and those passages are not scored.
"""

from pathlib import Path
from typing import Any

from stages.suites.files import a_list, a_text, an_object, check_shots, file_or_in, read_json
from stages.suites.questions import OpenQuestion, Spans

FILE = "drop_dataset_dev.json"
STOP = ("\n",)
MOST_TOKENS = 32


def read_drop(path: Path, shots: int) -> list[OpenQuestion]:
    """Every question of every passage after the shots'.  `path` is the file or its folder.  Raises `BadInput`."""
    file = file_or_in(path, FILE)
    passages = [_passage(f"{file}, passage {number}", body) for number, body in enumerate(_bodies(file), 1)]
    passages = [passage for passage in passages if passage]
    check_shots(file, "passages", shots, len(passages), leaving=1)
    shown = "".join(_shown(questions[0]) for questions in passages[:shots])
    return [
        OpenQuestion(shown + asked.prompt, asked.references, asked.group, STOP, MOST_TOKENS)
        for passage in passages[shots:]
        for asked in passage
    ]


def answer_spans(answer: dict[str, Any], where: str) -> tuple[Spans, str]:
    """An answer as the official script reads it, and its kind.  An empty answer is one empty span."""
    number = answer.get("number", "")
    if number != "":
        return (str(number),), "number"
    spans = tuple(a_text({"spans": span}, "spans", where) for span in a_list(answer, "spans", where))
    if spans:
        return spans, "span" if len(spans) == 1 else "spans"
    date = an_object(answer.get("date", {}), where)
    return (" ".join(a_text(date, part, where, default="") for part in ("day", "month", "year")).strip(),), "date"


def _shown(question: OpenQuestion) -> str:
    """A shot: a question with its first reference."""
    return f"{question.prompt} {', '.join(next(iter(question.references), ()))}\n\n"


def _bodies(path: Path) -> list[Any]:
    return list(an_object(read_json(path), str(path)).values())


def _passage(where: str, body: object) -> list[OpenQuestion]:
    fields = an_object(body, where)
    passage, questions = a_text(fields, "passage", where).strip(), []
    for number, record in enumerate(a_list(fields, "qa_pairs", where), 1):
        place = f"{where}, question {number}"
        pair = an_object(record, place)
        given = [pair.get("answer"), *a_list(pair, "validated_answers", place)]
        answers = [answer_spans(an_object(answer, place), place) for answer in given]
        # As in the official script: a reference whose first span is blank is ignored.  (With none left the score is 0.)
        references = tuple(dict.fromkeys(spans for spans, _ in answers if spans[0].strip()))
        prompt = f"{passage} {a_text(pair, 'question', place).strip()}\nAnswer:"
        questions.append(OpenQuestion(prompt, references, answers[0][1], STOP, MOST_TOKENS))
    return questions
