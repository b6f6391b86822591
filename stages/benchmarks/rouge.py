"""Answers of our own data: JSONL with `instruction`, `input` (may be absent) and `output`, or `prompt` and `reference`.

An instruction is asked by the published prompts of Stanford Alpaca (Taori et al. 2023); a plain prompt as it is.
"""

from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from stages.benchmarks.files import a_text, read_json_lines
from stages.benchmarks.questions import OpenQuestion

GROUP = "rouge"
MOST_TOKENS = 128
ASKS = "Write a response that appropriately completes the request."
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. " + ASKS + "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    + ASKS
    + "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
INSTRUCTION_STOP = ("\n\n### ",)  # where an instruction of the model's own would begin


def read_rouge(path: Path, shots: int) -> list[OpenQuestion]:
    """Every record, in order.  Raises `BadInput`."""
    if shots:
        raise BadInput("there are no shots for data of one's own", values={"--shots": shots, "expected": 0})
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise BadInput(f"{path} is no file", values={"expected": "JSONL", "found": found})
    questions = [_question(record, where) for where, record in read_json_lines(path)]
    if not questions:
        raise BadInput(f"{path} holds no records", values={"expected": "at least one", "found": "none"})
    return questions


def _question(record: dict[str, Any], where: str) -> OpenQuestion:
    if "instruction" not in record:
        return _open(a_text(record, "prompt", where), a_text(record, "reference", where), ())
    instruction, given = a_text(record, "instruction", where), a_text(record, "input", where, default="")
    form = WITH_INPUT if given.strip() else WITHOUT_INPUT
    prompt = form.format_map({"instruction": instruction, "input": given})
    return _open(prompt, a_text(record, "output", where), INSTRUCTION_STOP)


def _open(prompt: str, reference: str, stop: tuple[str, ...]) -> OpenQuestion:
    return OpenQuestion(prompt, ((reference,),), GROUP, stop, MOST_TOKENS)
