"""BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261) as github.com/suzgunmirac/BIG-Bench-Hard publishes it.

    bbh/<task>.json           {"examples": [{"input": …, "target": …}, …]}
    cot-prompts/<task>.txt    a canary, a line of dashes, then a description and three exemplars that reason first

Where a task has a chain-of-thought prompt, it is used, with all exemplars or the first `--shots`.  Where it has none,
the shots are the first examples with their targets, and those are not scored.
"""

from pathlib import Path

from schemas.errors import BadInput
from stages.suites.files import a_list, a_text, an_object, check_shots, files_of, read_json, read_text
from stages.suites.questions import OpenQuestion

DASHES = "-----\n"
STOP = ("\n\n", "Q:")  # where the next exemplar would start
REASONING_TOKENS, ANSWER_TOKENS = 512, 32

Example = tuple[str, str]


def read_bbh(folder: Path, shots: int | None) -> list[OpenQuestion]:
    """Every question of every task, by task name.  `shots` None: all exemplars of the data.  Raises `BadInput`."""
    questions: list[OpenQuestion] = []
    for path in files_of(folder / "bbh", "*.json", expected="bbh/<task>.json"):
        prompt = folder / "cot-prompts" / f"{path.stem}.txt"
        examples = _examples(path)
        if prompt.is_file():
            before, asking, skip = _reasoning(prompt, shots), "Q: {}\nA: Let's think step by step.\n", 0
        else:
            skip = shots or 0
            before, asking = "".join(f"Q: {asked}\nA: {target}\n\n" for asked, target in examples[:skip]), "Q: {}\nA:"
        check_shots(path, "examples", skip, len(examples), leaving=1)
        most = REASONING_TOKENS if prompt.is_file() else ANSWER_TOKENS
        questions += [
            OpenQuestion(before + asking.format(asked), ((target,),), path.stem, STOP, most)
            for asked, target in examples[skip:]
        ]
    return questions


def _reasoning(path: Path, shots: int | None) -> str:
    """The published prompt with its first `shots` exemplars (None: all), up to the question."""
    _, dashes, text = read_text(path).partition(DASHES)
    description, *exemplars = text.strip().split("\n\nQ: ")
    if not dashes or not exemplars:
        raise BadInput(
            f"{path} is not a prompt of BIG-Bench Hard",
            values={"expected": "a line of dashes, a description, exemplars that start with 'Q: '"},
        )
    count = len(exemplars) if shots is None else shots
    check_shots(path, "exemplars", count, len(exemplars))
    return "".join([description, "\n\n", *(f"Q: {exemplar}\n\n" for exemplar in exemplars[:count])])


def _examples(path: Path) -> list[Example]:
    records = a_list(an_object(read_json(path), str(path)), "examples", str(path))
    if not records:
        raise BadInput(f"{path} holds no examples", values={"expected": "at least one", "found": "none"})
    found = []
    for number, record in enumerate(records, 1):
        where = f"{path}, example {number}"
        fields = an_object(record, where)
        found.append((a_text(fields, "input", where), a_text(fields, "target", where)))
    return found
