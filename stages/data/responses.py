"""Find the responses in a rendered dialogue: from where a template asks for them to what ends them.

Most templates only append, so that a dialogue up to a response is the beginning of the whole one.  Others render a turn
differently once it is not the last: they add or strip a block of thoughts, or move the system message.  There a
response is found by what changes in the text when another content stands in its place.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

from schemas.errors import BadInput
from stages.data.chat import USE_ALPACA, Message, Span

Apply = Callable[[Sequence[Message], bool], str | None]  # messages, whether an answer is asked for: the text, or None
PIECE = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\s+|.", re.DOTALL)  # a special token, white space or a character
LONGEST_HEADER = 64  # characters
PRIVATE_USE = range(0xE000, 0xF900)


def find_responses(messages: Sequence[Message], text: str, apply: Apply) -> tuple[Span, ...]:
    """The span of each assistant's message in `text`, the rendered dialogue, with what ends it.

    Raises `BadInput` where the text does not show a response.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return tuple(_response(messages, index, text, apply) for index in answers)


def _response(messages: Sequence[Message], index: int, text: str, apply: Apply) -> Span:
    before = (apply(messages[:index], True) if index else None) or ""
    through = apply(messages[: index + 1], False) or ""
    if before and through.startswith(before) and text.startswith(through):
        return len(before), len(through.rstrip())
    content = _content(messages, index, text, apply)
    if content is None:
        last = index == len(messages) - 1
        raise BadInput(
            "the chat template does not show an answer, so it cannot be in the loss",
            values={"turns": len(messages), "first that is not shown": index + 1},
            hint=USE_ALPACA if last else 'set prompt.learn = "all", or use dialogues of one question and one answer',
        )
    begin, end = _begin(text, content[0], before), content[1]
    alone = _content(messages[: index + 1], index, through, apply)
    if alone is not None:
        ending = through[alone[1] :]
        end += _common(PIECE.findall(text[end : end + len(ending)]), PIECE.findall(ending))
    return begin, begin + len(text[begin:end].rstrip())


def _begin(text: str, content: int, before: str) -> int:
    """Where a response begins whose content begins at `content`: behind what asks for it, as in `before`."""
    if before and text.startswith(before) and len(before) <= content:
        return len(before)
    head, asking = text[:content].rstrip(), before.rstrip()
    header = PIECE.findall(asking[-LONGEST_HEADER:])[-1:]
    space = before[len(asking) :]
    if header and head.endswith(header[0]) and text[len(head) : content].startswith(space):
        return len(head) + len(space)
    return content


def _content(messages: Sequence[Message], index: int, text: str, apply: Apply) -> Span | None:
    """What changes in `text` when another content stands in a message; None where nothing does."""
    mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in text)
    marked = apply([*messages[:index], {**messages[index], "content": mark}, *messages[index + 1 :]], False)
    if marked is None or mark not in marked:
        return None
    begin = _common(text, marked)
    behind = _common(reversed(text[begin:]), reversed(marked[begin:]))
    return begin, len(text) - behind


def _common(one: Iterable[str], other: Iterable[str]) -> int:
    """How many characters of two texts, in pieces, are the same up to the first piece that differs."""
    return sum(len(left) for left, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
