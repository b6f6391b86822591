"""The user's own data, JSON lines or a list: `instruction`, `input` (optional) and `output`; or `messages` (or
`conversations`), the last of which is the answer; or `prompt` and `reference`.

A plain prompt is used as it is; the others are rendered by the template that the plan trained with, or Alpaca's.
"""

from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from stages.data.dialogues import OTHER_COLUMN, Turn, chat_turns
from stages.data.load import Example
from stages.data.readers import json_objects
from stages.data.records import Record
from stages.data.template import AlpacaTemplate, Template, placed
from stages.suites.files import a_text
from stages.suites.questions import OpenQuestion

GROUP = "rouge"
MOST_TOKENS = 128
ALPACA: Template = AlpacaTemplate(end="")
INSTRUCTION_STOP = ("\n\n### ",)  # where the model would start an instruction of its own


def read_rouge(path: Path, shots: int, template: Template = ALPACA) -> list[OpenQuestion]:
    """Every record, in order.  Raises `BadInput`."""
    if shots:
        raise BadInput("your own data has no shots", values={"--shots": shots, "expected": 0})
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise BadInput(f"{path} is not a file", values={"expected": "JSON", "found": found})
    questions = [_question(record, where, template) for where, record in json_objects(path)]
    if not questions:
        raise BadInput(f"{path} holds no records", values={"expected": "at least one", "found": "none"})
    return questions


def _question(record: dict[str, Any], where: str, template: Template) -> OpenQuestion:
    if "instruction" in record:
        asked = (
            ("instruction", a_text(record, "instruction", where)),
            ("input", a_text(record, "input", where, default="")),
        )
        return _asked(where, asked, a_text(record, "output", where), template)
    messages = record.get("messages", record.get(OTHER_COLUMN["messages"]))
    if messages is not None:
        turns = chat_turns(Record(where, {"messages": messages}), answered=True)
        if len(turns) < 2 or turns[-1][0] != "assistant":
            raise BadInput(
                f"{where}: no answer to compare with",
                values={"messages": len(turns), "expected": "the last one from the assistant"},
            )
        return _asked(where, turns[:-1], turns[-1][1], template)
    reference = a_text(record, "reference", where)
    return OpenQuestion(a_text(record, "prompt", where), ((reference,),), GROUP, (), MOST_TOKENS)


def _asked(where: str, turns: tuple[Turn, ...], answer: str, template: Template) -> OpenQuestion:
    stop = INSTRUCTION_STOP if isinstance(template, AlpacaTemplate) else ()
    example = Example("", None, turns, where)
    with placed(example):
        prompt = template.prompt(example)
    return OpenQuestion(prompt, ((answer,),), GROUP, stop, MOST_TOKENS, template.adds_special_tokens)
