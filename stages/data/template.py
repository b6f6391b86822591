"""Render instructions and dialogues as one text, and find the spans of the responses.

A chat template is a Jinja program that comes with a tokenizer.  It runs in Jinja's sandbox, without a clock (so that
a text is the same tomorrow), and is compared with the SHA-256 that the plan fixed.  A response is found by rendering
the dialogue without it and with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from schemas.base import canonical_json, sha256_digest
from schemas.errors import BadInput, NotTrusted
from schemas.settings import PromptSettings
from stages.data.load import Example, Turn
from stages.store.foreign import blamed_on, read_document, read_json

Message = dict[str, str]
Span = tuple[int, int]

# Taori et al. 2023, Stanford Alpaca: the published prompts, with and without an input.
ALPACA_PREFACE = "Below is an instruction that describes a task"
ALPACA_ASKS = "Write a response that appropriately completes the request."
WITHOUT_INPUT = ALPACA_PREFACE + ". " + ALPACA_ASKS + "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
WITH_INPUT = (
    ALPACA_PREFACE
    + ", paired with an input that provides further context. "
    + ALPACA_ASKS
    + "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
TEMPLATE_BYTES = 2**20  # the largest that is published has 30 KB
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Rendered:
    """A text and the spans of characters that are responses; None: all of it is in the loss."""

    text: str
    responses: tuple[Span, ...] | None


class Template(Protocol):
    """How an example becomes a text."""

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds its own special tokens."""
        ...

    def render(self, example: Example) -> Rendered:
        """The whole text.  Raises `BadInput`."""
        ...

    def prompt(self, example: Example) -> str:
        """The text before the last response.  Raises `BadInput`."""
        ...


@dataclass(frozen=True)
class PlainTemplate:
    """The text as it is."""

    adds_special_tokens: bool = True

    def render(self, example: Example) -> Rendered:
        """See `Template`."""
        return Rendered(example.text, None)

    def prompt(self, example: Example) -> str:
        """See `Template`."""
        return example.text


@dataclass(frozen=True)
class AlpacaTemplate:
    """Instruction and input under their headings, then the response and the end-of-text token (`end`)."""

    end: str
    adds_special_tokens: bool = True

    def render(self, example: Example) -> Rendered:
        """See `Template`.  A dialogue must be one question and one answer, with or without a system message."""
        prompt = self.prompt(example)
        text = prompt + as_fields(example)["output"] + self.end
        return Rendered(text, ((len(prompt), len(text)),))

    def prompt(self, example: Example) -> str:
        """See `Template`."""
        fields = as_fields(example)
        form = WITH_INPUT if fields.get("input", "").strip() else WITHOUT_INPUT
        return form.format_map({"instruction": fields["instruction"], "input": fields.get("input", "")})


@dataclass(frozen=True)
class ChatTemplate:
    """The model's own template, with the special tokens that it may use."""

    source: str
    special_tokens: tuple[tuple[str, str], ...]
    adds_special_tokens: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides how a dialogue is rendered."""
        return sha256_digest(canonical_json([self.source, *map(list, self.special_tokens)]))

    def render(self, example: Example) -> Rendered:
        """See `Template`."""
        messages = as_messages(example)
        text = self._apply(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._apply(messages[:index], asks=True) if index else ""
                through = self._apply(messages[: index + 1])
                if not (text.startswith(through) and through.startswith(before)):
                    raise BadInput(
                        "the chat template changes earlier turns, so responses cannot be told from the rest",
                        values={"turns": len(messages), "first that changes": index + 1},
                        hint='set prompt.learn = "all", or use dialogues of one question and one answer',
                    )
                spans.append((len(before), len(through.rstrip())))
        return Rendered(text, tuple(spans))

    def prompt(self, example: Example) -> str:
        """See `Template`."""
        messages = as_messages(example)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return self._apply(messages, asks=True)

    def _apply(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        from jinja2.exceptions import TemplateError

        try:
            template = _compiled(self.source)
            text: str = template.render(
                messages=list(messages), add_generation_prompt=asks, **dict(self.special_tokens)
            )
        except TemplateError as error:
            raise BadInput(
                "the chat template does not accept this dialogue",
                values={"turns": " ".join(message["role"] for message in messages), "reason": type(error).__name__},
                hint="most templates expect user and assistant in turn, and a system message only at the start",
            ) from None
        return text


def choose_template(model_dir: Path, prompt: PromptSettings) -> tuple[Template, PromptSettings]:
    """The template that `prompt` asks for, and `prompt` with the decision in it.

    Raises `BadInput` where the settings exclude each other, `NotTrusted` where the model's template is not the one that
    the plan fixed.
    """
    if prompt.format == "plain":
        return PlainTemplate(), prompt.model_copy(update={"template": "none"})
    if prompt.template == "none":
        raise BadInput(
            "instruction data needs a template",
            values={"prompt.format": prompt.format, "prompt.template": "none"},
            hint="leave prompt.template at auto",
        )
    config = tokenizer_config(model_dir)
    chat = None if prompt.template == "alpaca" else chat_template(model_dir, config)
    if chat is None and prompt.template not in ("auto", "alpaca"):
        raise NotTrusted(
            f"{model_dir} has no chat template",
            values={"plan says": prompt.template, "model has": "none"},
            hint="get the same tokenizer files as everyone else: tokenizer_config.json and chat_template.jinja",
        )
    if chat is None:
        return AlpacaTemplate(special_token(config.get("eos_token"))), prompt.model_copy(update={"template": "alpaca"})
    if prompt.template not in ("auto", chat.digest):
        raise NotTrusted(
            "the model's chat template is not the one that the plan fixed",
            values={"plan says": prompt.template, "model has": chat.digest},
            hint="get the same tokenizer files as everyone else: tokenizer_config.json and chat_template.jinja",
        )
    return chat, prompt.model_copy(update={"template": chat.digest})


def chat_template(model_dir: Path, config: dict[str, Any]) -> ChatTemplate | None:
    """The template in `chat_template.jinja` or `tokenizer_config.json`, None where there is none."""
    path = model_dir / "chat_template.jinja"
    source: object = _source(path) if path.exists() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
        source = named[0].get("template") if named else None
    if not isinstance(source, str):
        return None
    tokens = ((name, special_token(config.get(name))) for name in SPECIAL_TOKENS)
    return ChatTemplate(source, tuple((name, token) for name, token in tokens if token))


def _source(path: Path) -> str:
    with blamed_on(path, "is not UTF-8", hint="copy it again"):
        return read_document(path, at_most=TEMPLATE_BYTES).decode("utf-8")


def as_messages(example: Example) -> list[Message]:
    """An example as a dialogue; an Alpaca record is a question and an answer."""
    names = {name for name, _ in example.turns}
    if "instruction" not in names:
        return [{"role": role, "content": content} for role, content in example.turns]
    fields = dict(example.turns)
    asked = "\n\n".join(part for part in (fields["instruction"], fields.get("input", "")) if part.strip())
    answer = [{"role": "assistant", "content": fields["output"]}] if "output" in fields else []
    return [{"role": "user", "content": asked}, *answer]


def as_fields(example: Example) -> dict[str, str]:
    """An example as an Alpaca record.  Raises `BadInput` for a longer dialogue."""
    fields = dict(example.turns)
    if "instruction" in fields:
        return fields
    roles = [role for role, _ in example.turns if role != "system"]
    if roles not in (["user", "assistant"], ["user"]):
        raise BadInput(
            "Alpaca's template needs exactly one question and one answer",
            values={"turns": " ".join(roles)},
            hint="use a model with a chat template",
        )
    question = "\n\n".join(content for role, content in example.turns if role != "assistant")
    return {"instruction": question, "output": fields.get("assistant", "")}


def question(text: str) -> Example:
    """An example with one question and no answer yet."""
    turns: tuple[Turn, ...] = (("user", text),)
    return Example(text, None, turns)


def tokenizer_config(model_dir: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, as transformers writes it; empty where there is none.  Raises `BadInput`."""
    return read_object(model_dir / "tokenizer_config.json")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none.  Raises `BadInput` where it is not JSON."""
    document = read_json(path) if path.exists() else {}
    return document if isinstance(document, dict) else {}


def special_token(named: object) -> str:
    """A special token as transformers writes it: a string, or an object with its `content`."""
    content = named.get("content") if isinstance(named, dict) else named
    return content if isinstance(content, str) else ""


_templates: dict[str, Any] = {}


def _compiled(source: str) -> Any:
    """As transformers compiles it (`chat_template_utils`), but without `strftime_now`."""
    if source not in _templates:
        from jinja2.exceptions import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> NoReturn:
            raise TemplateError(message)

        def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        _templates[source] = environment.from_string(source)
    return _templates[source]
