"""Texts and dialogues, with their labels, from JSONL, CSV, Parquet or a folder per class.

An error names the file, the line (or row), the column, a length and what was expected.  It never shows a value,
because values must not leave the device.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.base import canonical_json
from schemas.errors import BadInput
from schemas.settings import PromptSettings, TaskSettings
from stages.data.dialogues import COLUMNS, Turn, alpaca_turns, chat_turns
from stages.data.readers import Columns, Record, as_text, read_csv, read_folder, read_jsonl, read_parquet, refuse_empty

READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}

PLAIN = PromptSettings()


@dataclass(frozen=True)
class Example:
    """A text or a dialogue, and its label; the label is None where labels are not read.

    `where` is the place that it was read from, "file, line 3", for errors that are found later.
    """

    text: str
    label: str | None
    turns: tuple[Turn, ...] = ()  # of instruction data; `text` is empty then
    where: str = field(default="", compare=False)

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
    return _examples(path, _Reading(text_column, label_column, frozenset(labels), prompt.format))


def load_prompts(path: Path, task: TaskSettings, prompt: PromptSettings) -> list[Example]:
    """Every record of `path` as a prompt: in the format that `prompt` names, with or without its response.

    Labels and responses are not read.  Raises `BadInput`.
    """
    reading = _Reading(task.text_column, None, frozenset(), prompt.format, answered=False)
    return _examples(path, reading)


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


def _examples(path: Path, reading: "_Reading") -> list[Example]:
    examples = [reading.example(record) for record in _records(path, reading.columns)]
    if not examples:
        raise BadInput(f"{path} holds no texts", values={"expected": "at least one text", "found": "none"})
    return examples


def _records(path: Path, columns: Columns) -> Iterator[Record]:
    if path.is_dir() and not {"instruction", *COLUMNS} & {*columns.required, *columns.optional}:
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
    answered: bool = True  # False: prompts, whose responses are not read

    @property
    def columns(self) -> Columns:
        """The columns that are read."""
        label = (self.label_column,) if self.label_column else ()
        if self.format == "alpaca":
            return Columns(("instruction", *(("output",) if self.answered else ()), *label), ("input",))
        if self.format == "chat":
            return Columns(label, COLUMNS)
        return Columns((self.text_column, *label))

    def example(self, record: Record) -> Example:
        """A record as an example.  Raises `BadInput`, which names the place and never a value."""
        if self.format == "alpaca":
            return Example("", self._label(record), alpaca_turns(record, answered=self.answered), record.where)
        if self.format == "chat":
            return Example("", self._label(record), chat_turns(record, answered=self.answered), record.where)
        text = record.text(self.text_column)
        refuse_empty(text, record.where, self.text_column)
        return Example(text, self._label(record), where=record.where)

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
