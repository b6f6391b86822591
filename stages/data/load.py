"""Texts and dialogues, with their labels, from JSONL, CSV, Parquet or a folder per class.

An error names the file, the line (or row), the column, a length and what was expected.  It never shows a value,
because values must not leave the device.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.base import canonical_json
from schemas.errors import BadInput
from schemas.settings import PromptSettings, TaskSettings
from stages.data.readers import Columns, Record, as_text, read_csv, read_folder, read_jsonl, read_parquet, refuse_empty

READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


ROLES = ("system", "user", "assistant")
PLAIN = PromptSettings()

Turn = tuple[str, str]  # (role, or column of an Alpaca record; content)


@dataclass(frozen=True)
class Example:
    """A text or a dialogue, and its label; the label is None where labels are not read."""

    text: str
    label: str | None
    turns: tuple[Turn, ...] = ()  # of instruction data; `text` is empty then

    def __repr__(self) -> str:
        return (
            f"Example({len(self.text)} characters, {len(self.turns)} turns)"  # never the text, not even in a traceback
        )


def load_examples(
    path: Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    labels: Sequence[str] = (),
    prompt: PromptSettings = PLAIN,
) -> list[Example]:
    """Every example of `path`, in order, in the format that `prompt` names.

    With `label_column = None` labels are not read; `labels`, if given, are the only ones allowed.  Raises `BadInput`.
    """
    reading = _Reading(text_column, label_column, frozenset(labels), prompt.format)
    examples = [reading.example(record) for record in _records(path, reading.columns)]
    if not examples:
        raise BadInput(f"{path} holds no texts", values={"expected": "at least one text", "found": "none"})
    return examples


def load_labelled(path: Path, task: TaskSettings, prompt: PromptSettings = PLAIN) -> list[Example]:
    """Every example of `path` with its label; `task` names the columns and possibly the allowed labels.

    For a task without labels (causal-lm) they are not read.  Raises `BadInput`.
    """
    label_column = task.label_column if task.kind == "text-classification" else None
    return load_examples(
        path, text_column=task.text_column, label_column=label_column, labels=task.labels, prompt=prompt
    )


def label_indices(examples: Iterable[Example], labels: Sequence[str]) -> list[int]:
    """Each example's label as an index into `labels`."""
    position = {label: index for index, label in enumerate(labels)}
    return [position[example.label or ""] for example in examples]


def data_digest(examples: Iterable[Example], *, salt: str = "") -> str:
    """SHA-256 over the texts and labels in order, independent of the file format.

    A salt with the plan and the device keeps digests from being compared across federations.
    """
    digest = hashlib.sha256(canonical_json(["chainctl data", salt]))
    for example in examples:
        content: object = [list(turn) for turn in example.turns] or example.text
        digest.update(canonical_json([content, example.label]))
    return f"sha256:{digest.hexdigest()}"


def label_set(examples: Iterable[Example]) -> tuple[str, ...]:
    """The distinct labels, sorted."""
    return tuple(sorted({example.label for example in examples if example.label is not None}))


def _records(path: Path, columns: Columns) -> Iterator[Record]:
    if path.is_dir() and columns.required[0] not in ("instruction", "messages"):
        return read_folder(path, columns)
    reader = READERS.get(path.suffix.lower())
    if not path.exists() or reader is None:
        raise BadInput(
            f"{path} is not data that can be read",
            values={
                "expected": f"a file ending in {', '.join(READERS)}, or a folder with a folder per class",
                "found": "a file of another kind" if path.exists() else "nothing",
            },
        )
    return reader(path, columns)


@dataclass(frozen=True)
class _Reading:
    """Which columns of a record become an example."""

    text_column: str
    label_column: str | None
    labels: frozenset[str]
    format: str

    @property
    def columns(self) -> Columns:
        """The columns that are read."""
        label = (self.label_column,) if self.label_column else ()
        if self.format == "alpaca":
            return Columns(("instruction", "output", *label), ("input",))
        return Columns(("messages" if self.format == "chat" else self.text_column, *label))

    def example(self, record: Record) -> Example:
        """A record as an example.  Raises `BadInput`, which names the place and never a value."""
        if self.format == "alpaca":
            return Example("", self._label(record), _alpaca_turns(record))
        if self.format == "chat":
            return Example("", self._label(record), _chat_turns(record))
        text = record.text(self.text_column)
        refuse_empty(text, record.where, self.text_column)
        return Example(text, self._label(record))

    def _label(self, record: Record) -> str | None:
        if self.label_column is None:
            return None
        value = record.values[self.label_column]
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # integer class ids are labels too
        label = as_text(value, record.where, self.label_column)
        if not label:
            raise BadInput(
                f"{record.where}: the label is empty", values={"column": self.label_column, "expected": "a label"}
            )
        if self.labels and label not in self.labels:
            raise BadInput(
                f"{record.where}: the label is not one of the plan's",
                values={
                    "column": self.label_column,
                    "length": f"{len(label)} characters",
                    "expected": f"one of {', '.join(sorted(self.labels))}",
                },
                hint="the label set is fixed by the plan; see [task] labels in the recipe",
            )
        return label


def _alpaca_turns(record: Record) -> tuple[Turn, ...]:
    """Instruction, input where there is one, output."""
    turns = [(column, record.text(column)) for column in ("instruction", "input", "output") if _has(record, column)]
    for column, text in turns:
        if column != "input":
            refuse_empty(text, record.where, column)
    return tuple(turns)


def _chat_turns(record: Record) -> tuple[Turn, ...]:
    """Roles and contents.  At least one message must be the assistant's, or there is nothing to train on."""
    messages = record.values["messages"]
    expected = "a list of objects with role and content"
    if not isinstance(messages, list):
        raise BadInput(
            f"{record.where}: the dialogue is not a list",
            values={"column": "messages", "expected": expected, "found": type(messages).__name__},
        )
    turns = tuple(_turn(record.where, number, message) for number, message in enumerate(messages, 1))
    if not any(role == "assistant" for role, _ in turns):
        raise BadInput(
            f"{record.where}: the dialogue has no answer",
            values={"expected": "a message of role assistant", "found": f"{len(turns)} messages of other roles"},
        )
    return turns


def _turn(where: str, number: int, message: Any) -> Turn:
    place = f"{where}, message {number}"
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise BadInput(
            f"{place}: not a message",
            values={"expected": "an object with role and content", "found": type(message).__name__},
        )
    if message["role"] not in ROLES:
        raise BadInput(f"{place}: the role is not known", values={"expected": ", ".join(ROLES)})
    content = as_text(message["content"], place, "content")
    refuse_empty(content, place, "content")
    return message["role"], content


def _has(record: Record, column: str) -> bool:
    return record.values.get(column) is not None or column != "input"
