"""CRASS (Frohberg & Binder 2022, arXiv 2112.11941) as github.com/apergo-ai/CRASS-data-set publishes it.

`CRASS_FTM_main_data_set.csv`: semicolons, a header, columns PCTID, Premise, QCC (the questionised counterfactual),
CorrectAnswer, Answer1, Answer2, PossibleAnswer3 (may be empty).

Asked like MMLU, as in InstructEval (Chia et al. 2023, arXiv 2306.04757): premise and question, the answers by
letter.  In the file the right answer is always the first; here the order is drawn from the record's index, so that
neither a preference for a letter nor a tie gains anything.  There is no second file for shots: they are the first
records, which are then not scored.
"""

from pathlib import Path

from schemas.errors import BadInput
from stages.process import seeds
from stages.suites.files import check_shots, file_or_in, read_csv
from stages.suites.mmlu import lettered, letters
from stages.suites.questions import Choice

FILE = "CRASS_FTM_main_data_set.csv"
GROUP = "crass"
ANSWERS = ("CorrectAnswer", "Answer1", "Answer2", "PossibleAnswer3")
COLUMNS = ("Premise", "QCC", *ANSWERS)


def read_crass(path: Path, shots: int) -> list[Choice]:
    """Every record after the shots, in order.  `path` is the file or its folder.  Raises `BadInput`."""
    file = file_or_in(path, FILE)
    asked = [_ask(number, where, record) for number, (where, record) in enumerate(_records(file))]
    check_shots(file, "records", shots, len(asked), leaving=1)
    shown = "".join(f"{one.prompt}{one.choices[one.answer_index]}\n\n" for one in asked[:shots])
    return [Choice(shown + one.prompt, one.choices, one.answer_index, one.group) for one in asked[shots:]]


def _ask(number: int, where: str, record: dict[str, str]) -> Choice:
    answers = [record[column].strip() for column in ANSWERS]
    if not all(answers[:3]):
        raise BadInput(
            f"{where}: an answer is empty",
            values={
                "columns": ", ".join(ANSWERS[:3]),
                "lengths": ", ".join(str(len(answer)) for answer in answers[:3]),
            },
        )
    kept = [answer for answer in answers if answer]
    order = _order(number, len(kept))
    question = f"{record['Premise'].strip()} {record['QCC'].strip()}"
    return Choice(
        prompt=lettered(question, tuple(kept[place] for place in order)),
        choices=letters(len(kept)),
        answer_index=order.index(0),
        group=GROUP,
    )


def _order(number: int, count: int) -> list[int]:
    """A permutation by numpy's PCG64, seeded with SHA-256 of the record's index: the same on every machine."""
    generator = seeds.generator("crass", number)
    order: list[int] = generator.permutation(count).tolist()
    return order


def _records(path: Path) -> list[tuple[str, dict[str, str]]]:
    rows = list(read_csv(path, delimiter=";"))
    columns = [name.strip() for name in rows[0][1]] if rows else []
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise BadInput(
            f"{path}: there is no column {missing[0]!r}",
            values={"expected": ", ".join(COLUMNS), "found": f"{len(columns)} columns"},
        )
    records = []
    for where, fields in rows[1:]:
        if len(fields) < len(columns):
            raise BadInput(f"{where}: wrong number of fields", values={"expected": len(columns), "found": len(fields)})
        records.append((where, dict(zip(columns, fields, strict=False))))
    return records
