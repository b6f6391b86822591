"""Instruction data and dialogues: records of Alpaca, chat messages and ShareGPT as turns.

A message has a role and a content, or ShareGPT's `from` and `value`; a content is a text, or a list of text parts,
which are joined as templates join them.  What only a template for tools or images could show is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import BadInput
from stages.data.records import Record, as_text, refuse_empty

Turn = tuple[str, str]  # (role, or column of an Alpaca record; content)

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", **{role: role for role in ROLES}}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
TOOL_KEYS = ("tool_calls", "tool_call_id", "function_call")
OTHER_COLUMN = {"messages": "conversations"}  # what ShareGPT calls it
BESIDE = ("system", "tools")  # what many data sets write beside the messages, if anything
SHAPE = "objects with role (system, user, assistant) and content (a text, or a list of text parts)"
SHAREGPT_SHAPE = "objects with from (system, human, gpt) and value (a text)"
ONLY_TEXTS = "remove dialogues with tools or images, or write what was called and seen as text of user and assistant"


def alpaca_turns(record: Record, *, answered: bool) -> tuple[Turn, ...]:
    """Instruction, input where there is one and, if `answered`, output.  Raises `BadInput`."""
    columns = ("instruction", "input", "output") if answered else ("instruction", "input")
    turns = [
        (column, record.text(column))
        for column in columns
        if column != "input" or record.values.get(column) is not None
    ]
    for column, text in turns:
        if column != "input":
            refuse_empty(text, record.where, column)
    return tuple(turns)


def chat_turns(record: Record, *, answered: bool) -> tuple[Turn, ...]:
    """Roles and contents.

    If `answered`, at least one message must be the assistant's, or there is nothing to train on; else the answers at
    the end are left out, and a question must remain.  Raises `BadInput`.
    """
    messages = record.values["messages"]
    if record.values.get("tools") not in (None, "", "[]", []):
        raise BadInput(f"{record.where}: the dialogue has tools", values={"expected": SHAPE}, hint=ONLY_TEXTS)
    if not isinstance(messages, list):
        raise BadInput(
            f"{record.where}: the dialogue is not a list",
            values={
                "column": "messages or conversations",
                "expected": f"a list of {SHAPE}",
                "found": type(messages).__name__,
            },
        )
    if record.values.get("system"):
        messages = [{"role": "system", "content": record.text("system")}, *messages]
    return _asked(record.where, messages) if not answered else _answered(record.where, messages)


def _answered(where: str, messages: Sequence[Any]) -> tuple[Turn, ...]:
    turns = _turns(where, messages)
    if not any(role == "assistant" for role, _ in turns):
        raise BadInput(
            f"{where}: the dialogue has no answer",
            values={"expected": "a message of role assistant", "found": f"{len(turns)} messages of other roles"},
        )
    return turns


def _asked(where: str, messages: Sequence[Any]) -> tuple[Turn, ...]:
    asked = list(messages)
    while asked and isinstance(asked[-1], dict) and _role(asked[-1]) == "assistant":
        asked.pop()
    if not asked:
        raise BadInput(
            f"{where}: the dialogue has no question",
            values={"expected": "a message of role user at the end, before any answer", "found": "none"},
        )
    return _turns(where, asked)


def _turns(where: str, messages: Sequence[Any]) -> tuple[Turn, ...]:
    return tuple(_turn(f"{where}, message {number}", message) for number, message in enumerate(messages, 1))


def _turn(place: str, message: Any) -> Turn:
    if not isinstance(message, dict) or not _has_shape(message):
        raise BadInput(
            f"{place}: not a message",
            values={"expected": SHAPE, "or": SHAREGPT_SHAPE, "found": type(message).__name__},
        )
    _refuse_tools(place, message)
    role = _role(message)
    if role is None:
        raise BadInput(f"{place}: the role is not known", values={"expected": SHAPE, "or": SHAREGPT_SHAPE})
    column = "content" if "content" in message else "value"
    content = _content(place, message[column], column)
    if role != "system":  # many data sets have an empty one, which templates show
        refuse_empty(content, place, column)
    return role, content


def _has_shape(message: Mapping[str, Any]) -> bool:
    tools = any(message.get(key) for key in TOOL_KEYS)  # a call may have no content
    return bool({"role", "from"} & set(message)) and (tools or bool({"content", "value"} & set(message)))


def _role(message: Mapping[str, Any]) -> str | None:
    """The role of a message, None where it is not one of the three."""
    named = message.get("role", message.get("from"))
    return SHAREGPT_ROLES.get(named) if isinstance(named, str) else None


def _refuse_tools(place: str, message: Mapping[str, Any]) -> None:
    named = message.get("role", message.get("from"))
    called = [key for key in TOOL_KEYS if message.get(key)]
    if called or named in TOOL_ROLES:
        raise BadInput(
            f"{place}: the message calls a tool, or is a tool's",
            values={"expected": SHAPE, "found": called[0] if called else f"role {named}"},
            hint=ONLY_TEXTS,
        )


def _content(place: str, content: Any, column: str) -> str:
    """A text, or text parts one after the other: `[{"type": "text", "text": …}]`.  Raises `BadInput`."""
    if not isinstance(content, list):
        return as_text(content, place, column)
    return "".join(_part(f"{place}, part {number}", part) for number, part in enumerate(content, 1))


def _part(place: str, part: Any) -> str:
    if isinstance(part, dict):
        # A table (Parquet) has every key in every part, with null where the part has no such key.
        given = {key for key, value in part.items() if value is not None}
        if given == {"type", "text"} and part["type"] == "text":
            return as_text(part["text"], place, "text")
    raise BadInput(
        f"{place}: not a part of text",
        values={"expected": 'objects {"type": "text", "text": …}', "found": _kind(part)},
        hint=ONLY_TEXTS,
    )


def _kind(part: Any) -> str:
    """The type of a part where it is a known one, else the type of the value: never a value."""
    known = ("image", "image_url", "input_image", "video", "audio", "input_audio", "file", "tool_use", "tool_result")
    named = part.get("type") if isinstance(part, dict) else None
    return f"a part of type {named}" if named in known else type(part).__name__
