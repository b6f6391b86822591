"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300) as github.com/hendrycks/test publishes it.

    dev/<subject>_dev.csv     five questions with answers: the shots
    test/<subject>_test.csv   the questions that are scored

No header; question, four choices, the letter of the right one.  The prompt is that of their `evaluate.py` (which
writes a second space before the subject by accident; lm-evaluation-harness does not, and neither do we), and the
answer is the likeliest of " A", " B", " C", " D".
"""

from pathlib import Path

from schemas.errors import BadInput
from stages.suites.files import check_shots, files_of, read_csv
from stages.suites.questions import Choice

LETTERS = "ABCD"
MOST_SHOTS = 5
INTRODUCTION = "The following are multiple choice questions (with answers) about {subject}.\n\n"

Row = tuple[str, tuple[str, ...], int]


def read_mmlu(folder: Path, shots: int) -> list[Choice]:
    """Every test question of every subject, by subject name.  Raises `BadInput`."""
    if not 0 <= shots <= MOST_SHOTS:
        raise BadInput("MMLU has five shots per subject", values={"--shots": shots, "expected": f"0 to {MOST_SHOTS}"})
    questions: list[Choice] = []
    for path in files_of(folder / "test", "*_test.csv", expected="test/<subject>_test.csv"):
        subject = path.name.removesuffix("_test.csv")
        introduction = INTRODUCTION.format(subject=subject.replace("_", " ")) + _shots(folder, subject, shots)
        questions += [
            Choice(introduction + lettered(question, choices), letters(len(choices)), answer, subject)
            for question, choices, answer in _rows(path)
        ]
    return questions


def lettered(question: str, choices: tuple[str, ...]) -> str:
    """A question with one line per choice, up to "Answer:"."""
    lines = [question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)), "Answer:"]
    return "\n".join(lines)


def letters(count: int) -> tuple[str, ...]:
    """The continuations whose likelihoods are compared."""
    return tuple(f" {letter}" for letter in LETTERS[:count])


def _shots(folder: Path, subject: str, count: int) -> str:
    if count == 0:
        return ""
    path = folder / "dev" / f"{subject}_dev.csv"
    rows = _rows(path)
    check_shots(path, "shots", count, len(rows))
    return "".join(f"{lettered(question, choices)} {LETTERS[answer]}\n\n" for question, choices, answer in rows[:count])


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for where, fields in read_csv(path):
        if len(fields) != 6:
            raise BadInput(f"{where}: wrong number of fields", values={"expected": 6, "found": len(fields)})
        question, *choices, answer = fields
        if answer not in tuple(LETTERS):
            raise BadInput(
                f"{where}: the answer is not the letter of a choice",
                values={"expected": "A, B, C or D", "length": f"{len(answer)} characters"},
            )
        rows.append((question, tuple(choices), LETTERS.index(answer)))
    if not rows:
        raise BadInput(f"{path} holds no questions", values={"expected": "at least one", "found": "none"})
    return rows
