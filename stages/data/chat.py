"""Run a chat template: a Jinja program from the model's folder, in the environment that transformers gives it.

It runs in Jinja's sandbox.  Its clock, `strftime_now`, stands still on the plan's date, so that a text is the same on
every device and tomorrow.  What goes wrong is said with its own cause, and never with a text of the dialogue.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from schemas.errors import BadInput, some

Message = dict[str, str]
Span = tuple[int, int]
Attempt = Callable[[Sequence[Message]], Exception | None]

LONGEST_REASON = 200  # characters of what a template says
USE_ALPACA = 'set prompt.template = "alpaca", with dialogues of one question and one answer'


def render_chat(
    source: str,
    messages: Sequence[Message],
    tokens: Mapping[str, str | list[str]],
    *,
    date: str,
    asks: bool = False,
) -> tuple[str, list[Span]]:
    """The text of a dialogue, and the spans that the template marks as generated.

    `tokens`: the special tokens by name; `date`: ISO 8601, what the template's clock shows; `asks`: the header of an
    answer follows.  A function of its arguments alone.  Raises `BadInput`.
    """

    def attempt(other: Sequence[Message]) -> Exception | None:
        try:
            _render(source, other, tokens, date=date, asks=asks)
        except Exception as error:  # a template can raise anything
            return error
        return None

    try:
        return _render(source, messages, tokens, date=date, asks=asks)
    except Exception as error:  # a template can raise anything
        raise _explained(error, source, messages, attempt) from None


def check_syntax(source: str, where: str) -> None:
    """Whether `source` is a template.  Raises `BadInput`, which names `where` it is from and the line."""
    try:
        _compiled(source)
    except Exception as error:  # also what Jinja's own compiler does not expect
        reason = _shortened(error.message or "") if isinstance(error, TemplateSyntaxError) else type(error).__name__
        line = {"line": error.lineno} if isinstance(error, TemplateSyntaxError) else {}
        raise BadInput(
            f"{where}: the chat template is not valid Jinja",
            values={**line, "reason": reason},
            hint=f"get the file again if it was truncated, or {USE_ALPACA}",
        ) from None


def _render(
    source: str, messages: Sequence[Message], tokens: Mapping[str, str | list[str]], *, date: str, asks: bool
) -> tuple[str, list[Span]]:
    blocks: list[str] = []
    generated: list[Span] = []
    clock = datetime.fromisoformat(date)
    reset = _GENERATED.set((blocks, generated))
    try:
        for block in _compiled(source).generate(
            messages=list(messages),
            tools=None,
            documents=None,
            add_generation_prompt=asks,
            strftime_now=clock.strftime,
            **tokens,
        ):
            blocks.append(block)
    finally:
        _GENERATED.reset(reset)
    return "".join(blocks), generated


def _explained(error: Exception, source: str, messages: Sequence[Message], attempt: Attempt) -> BadInput:
    """What went wrong, and a way out."""
    reason = _reason(error, source, messages, attempt)
    turns = some([message["role"] for message in messages])
    if isinstance(error, _RaisedError):
        hint = _order(messages, attempt) or USE_ALPACA
        return BadInput(
            "the chat template refuses this dialogue", values={"turns": turns, "it says": reason}, hint=hint
        )
    if isinstance(error, UndefinedError):
        missing = re.match(r"'(\w+_token)' is undefined", error.message or "")
        add = f'add "{missing[1]}" to tokenizer_config.json, or ' if missing else ""
        return BadInput(
            "the chat template uses something that it is not given",
            values={"turns": turns, "reason": reason},
            hint=add + USE_ALPACA,
        )
    fact = "tries to leave its sandbox" if isinstance(error, SecurityError) else "fails on this dialogue"
    return BadInput(
        f"the chat template {fact}",
        values={"turns": turns, "reason": f"{type(error).__name__}: {reason}"},
        hint=_order(messages, attempt) or USE_ALPACA,
    )


def _reason(error: Exception, source: str, messages: Sequence[Message], attempt: Attempt) -> str:
    """What an error says, where no text of the dialogue can be in it: the same without the texts, or as in `source`."""
    said = str(error)
    if said in source:
        return _shortened(said)
    other = attempt([{**message, "content": "…"} for message in messages])
    same = type(other) is type(error) and str(other) == said
    return _shortened(said) if same else "not shown, because it depends on the dialogue's texts"


def _shortened(said: str) -> str:
    """On one line, without control characters."""
    line = " ".join("".join(one if one.isprintable() else " " for one in said).split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def _order(messages: Sequence[Message], attempt: Attempt) -> str:
    """Which order of roles the template would accept; empty where the order is not what it refuses."""
    spoken = [message for message in messages if message["role"] != "system"]
    if 0 < len(spoken) < len(messages) and attempt(spoken) is None:
        return "put the system message at the head of the first question: without it this dialogue is accepted"
    turns = [{"role": ("user", "assistant")[index % 2], "content": "…"} for index in range(2 * len(spoken) + 2)]
    in_turn = turns[: len(spoken)]
    if spoken and spoken[-1]["role"] != in_turn[-1]["role"]:
        in_turn = turns[: len(spoken) + 1]
    roles = [message["role"] for message in spoken]
    if roles != [message["role"] for message in in_turn] and attempt(in_turn) is None:
        return "let user and assistant take turns, beginning with user; a system message only at the start, if at all"
    return ""


class _RaisedError(TemplateError):
    """A template's own refusal, by `raise_exception`."""


_GENERATED: ContextVar[tuple[list[str], list[Span]] | None] = ContextVar("generated", default=None)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, as in transformers: the span of what the model writes is noted."""

    tags = {"generation"}  # noqa: RUF012 -- as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of `_noted` with its text."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_noted"), [], [], body).set_lineno(line)

    def _noted(self, caller: Callable[[], str]) -> str:
        text = caller()
        rendering = _GENERATED.get()
        assert rendering is not None
        blocks, spans = rendering
        begin = sum(map(len, blocks))
        spans.append((begin, begin + len(text)))
        return text


class _Dict:
    """`dict` of a template, of which nothing but a call can be had."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` of a template, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # as in Jinja, so that `namespace(self=…)` works
        for name in dict(*given, **kwargs):
            _refuse_private(name)
        Namespace.__init__(self, *given, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError("a namespace has no names that begin with an underscore")


def _raise_exception(message: str) -> NoReturn:
    raise _RaisedError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """As transformers compiles it (`chat_template_utils`), but for the clock, which each rendering brings."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "dict": _Dict(), "namespace": _Namespace}
    return environment.from_string(source)
