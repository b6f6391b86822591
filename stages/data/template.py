"""Render instructions and dialogues as one text, and find the spans of the responses.

A chat template is a Jinja program that comes with a tokenizer (`chat`), and is compared with the SHA-256 that the plan
fixed.  Where it marks what it generates (`{% generation %}`), that is the response; `responses` finds the others.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from schemas.base import canonical_json, sha256_digest
from schemas.errors import BadInput, NotTrusted, some
from schemas.settings import PromptSettings
from stages.data.dialogues import Turn
from stages.data.load import Example
from stages.data.tokenizer import COPY_AGAIN, ModelTokenizer, read_object
from stages.process.confined import OverLimitError, run_confined
from stages.store.foreign import blamed_on, read_document

if TYPE_CHECKING:
    from stages.data.chat import Message, Span

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
TEMPLATE = "chat_template.jinja"
OLDER_TEMPLATE = "chat_template.json"  # of processors


@dataclass(frozen=True)
class Rendered:
    """A text and the spans of characters that are responses; None: all of it is in the loss."""

    text: str
    responses: "tuple[Span, ...] | None"


class Template(Protocol):
    """How an example becomes a text."""

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds its own special tokens."""
        ...

    def render(self, example: Example) -> Rendered:
        """The whole text, and its responses.  Raises `BadInput`."""
        ...

    def text(self, example: Example) -> str:
        """The whole text.  Raises `BadInput`, but not for responses that cannot be found."""
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
        return Rendered(self.text(example), None)

    def text(self, example: Example) -> str:
        """See `Template`."""
        return example.text

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
        text = self.text(example)
        return Rendered(text, ((len(self.prompt(example)), len(text)),))

    def text(self, example: Example) -> str:
        """See `Template`."""
        return self.prompt(example) + as_fields(example)["output"] + self.end

    def prompt(self, example: Example) -> str:
        """See `Template`."""
        fields = as_fields(example)
        form = WITH_INPUT if fields.get("input", "").strip() else WITHOUT_INPUT
        return form.format_map({"instruction": fields["instruction"], "input": fields.get("input", "")})


@dataclass(frozen=True)
class ChatTemplate:
    """The model's own template, with the special tokens that it may use and the date that it may show."""

    source: str
    special_tokens: Mapping[str, str | list[str]]
    date: str
    adds_special_tokens: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of what decides how a dialogue is rendered, but for the date."""
        return sha256_digest(canonical_json([self.source, self.special_tokens]))

    def render(self, example: Example) -> Rendered:
        """See `Template`."""
        from stages.data.responses import find_responses

        messages = as_messages(example)
        text, generated = self._apply(messages)
        return Rendered(text, tuple(generated) or find_responses(messages, text, self._attempt))

    def text(self, example: Example) -> str:
        """See `Template`."""
        return self._apply(as_messages(example))[0]

    def prompt(self, example: Example) -> str:
        """See `Template`."""
        messages = as_messages(example)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return self._apply(messages, asks=True)[0]

    def _apply(self, messages: "Sequence[Message]", *, asks: bool = False) -> "tuple[str, list[Span]]":
        from stages.data.chat import render_chat

        return render_chat(self.source, messages, self.special_tokens, date=self.date, asks=asks)

    def _attempt(self, messages: "Sequence[Message]", asks: bool) -> str | None:
        """The text of a part of a dialogue, None where the template accepts only the whole."""
        try:
            return self._apply(messages, asks=asks)[0]
        except BadInput:
            return None


def choose_template(own: ModelTokenizer, prompt: PromptSettings) -> tuple[Template, PromptSettings]:
    """The template that `prompt` asks for, and `prompt` with the decision in it.

    Raises `BadInput` where the settings exclude each other or the model's files cannot be read, `NotTrusted` where the
    model's template is not the one that the plan fixed.
    """
    if prompt.format == "plain":
        return PlainTemplate(), prompt.model_copy(update={"template": "none"})
    if prompt.template == "none":
        raise BadInput(
            "instruction data needs a template",
            values={"prompt.format": prompt.format, "prompt.template": "none"},
            hint="leave prompt.template at auto",
        )
    source = None if prompt.template == "alpaca" else chat_template(own.model_dir)
    if source is None and prompt.template not in ("auto", "alpaca"):
        raise NotTrusted(
            f"{own.model_dir} has no chat template",
            values={"plan says": prompt.template, "model has": "none"},
            hint="get the same tokenizer files as everyone else: tokenizer_config.json and chat_template.jinja",
        )
    if source is None:
        return AlpacaTemplate(_end_of(own)), prompt.model_copy(update={"template": "alpaca"})
    chat = ChatTemplate(source, own.special_tokens, prompt.date)
    if prompt.template not in ("auto", chat.digest):
        raise NotTrusted(
            "the model's chat template is not the one that the plan fixed",
            values={"plan says": prompt.template, "model has": chat.digest},
            hint="get the same tokenizer files as everyone else: tokenizer_config.json and chat_template.jinja",
        )
    return chat, prompt.model_copy(update={"template": chat.digest})


def _end_of(own: ModelTokenizer) -> str:
    if own.end is None:
        raise BadInput(
            f"{own.model_dir} does not say which token ends a text, so no response could end",
            values={"expected": "eos_token in tokenizer_config.json, or eos_token_id in config.json", "found": "none"},
            hint='add "eos_token" to tokenizer_config.json: a token that the vocabulary has',
        )
    return own.end


def chat_template(model_dir: Path) -> str | None:
    """The source in `chat_template.jinja`, `tokenizer_config.json` or `chat_template.json`, None where there is none.

    Raises `BadInput` where it cannot be read or is not a template.
    """
    older = read_object(model_dir / OLDER_TEMPLATE).get("chat_template")
    newer = read_object(model_dir / "tokenizer_config.json").get("chat_template")
    for name, found in (
        (TEMPLATE, _read_template(model_dir / TEMPLATE)),
        ("tokenizer_config.json", newer),
        (OLDER_TEMPLATE, older),
    ):
        if found is not None:
            source = _default_of(model_dir / name, found)
            _check_syntax(source, model_dir / name)
            return source
    return None


def _check_syntax(source: str, path: Path) -> None:
    """In a child: the compiler computes what is constant, however large it is.  Raises `BadInput`."""
    from stages.data.chat import USE_ALPACA, check_syntax

    try:
        run_confined(lambda: check_syntax(source, str(path)))
    except OverLimitError as error:
        raise BadInput(
            f"{path}: the chat template takes too much to compile", values={"reached": error.resource}, hint=USE_ALPACA
        ) from None


def _read_template(path: Path) -> str | None:
    if not path.exists():
        return None
    with blamed_on(path, "cannot be read", hint=COPY_AGAIN):
        data = read_document(path, at_most=TEMPLATE_BYTES)
        source = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()  # ends of lines as transformers reads them
    if not source.strip():
        raise BadInput(f"{path} is empty", values={"expected": "a chat template"}, hint=COPY_AGAIN)
    return source


def _default_of(path: Path, found: object) -> str:
    """A template, or the one named `default` among several, as in transformers.  Raises `BadInput`."""
    named: object = found
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
    source = named.get("default") if isinstance(named, dict) else named
    if not isinstance(source, str):
        kind = f"{len(named)} by other names" if isinstance(named, dict) else type(found).__name__
        raise BadInput(
            f"{path}: the chat template is not a text",
            values={"expected": "a text, or several by name with one named default", "found": kind},
            hint='get the file again, or set prompt.template = "alpaca"',
        )
    return source


def as_messages(example: Example) -> "list[Message]":
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
            values={"turns": some([role for role, _ in example.turns])},
            hint="use dialogues of one question and one answer, or a model with a chat template",
        )
    question = "\n\n".join(content for role, content in example.turns if role != "assistant")
    return {"instruction": question, "output": fields.get("assistant", "")}


@contextmanager
def placed(example: Example) -> Iterator[None]:
    """Errors inside name the file and line of the example."""
    try:
        yield
    except BadInput as error:
        where = f"{example.where}: " if example.where else ""
        raise BadInput(where + error.fact, values=error.values, hint=error.hint) from None


def question(text: str) -> Example:
    """An example with one question and no answer yet."""
    turns: tuple[Turn, ...] = (("user", text),)
    return Example(text, None, turns)
