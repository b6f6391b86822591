"""Texts and dialogues, with their labels, from JSON, CSV, Parquet, a folder of such files, or a folder per class.

An error names the file, the line (or row), the column, a length and what was expected.  It never shows a value,
because values must not leave the device.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from schemas.base import canonical_json
from schemas.errors import BadInput
from schemas.settings import PromptSettings, TaskSettings
from stages.data.dialogues import BESIDE, OTHER_COLUMN, Turn, alpaca_turns, chat_turns
from stages.data.folder import folder_of_parts, left_out, parts_of, read_texts
from stages.data.labels import LabelRule
from stages.data.model_folder import TILDE, refuse_pointer
from stages.data.readers import FORMATS, Format, format_of
from stages.data.records import DROPPING, LABEL_OPTION, TEXT_OPTION, Columns, EmptyValue, Record, refuse_empty
from stages.process import intent

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
    empty: list[str] | None = None,
) -> list[Example]:
    """Every example of `path`, in order, in the format that `prompt` names.

    With `label_column = None` labels are not read; `labels`, if given, are the only ones allowed.  A record without a
    text or a label is refused, or left out where there is a list `empty` to put its place into.  Raises `BadInput`.
    """
    rule = None if label_column is None else LabelRule(label_column, labels)
    return _examples(path, _Reading(text_column, rule, prompt.format), empty)


def load_prompts(path: Path, task: TaskSettings, prompt: PromptSettings) -> list[Example]:
    """Every record of `path` as a prompt: in the format that `prompt` names, with or without its response.

    Labels and responses are not read.  Raises `BadInput`.
    """
    return _examples(path, _Reading(task.text_column, None, prompt.format, answered=False))


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


def column_names(path: Path) -> list[str]:
    """The names of the columns of a data file, or of the first part of a folder of such files; of JSON, the keys of
    the first record.  In a table without names they are its first record.  Raises `BadInput`.
    """
    parts = parts_of(path) if path.is_dir() else None
    format = parts.format if parts else format_of(path)
    if format is None or not path.exists():
        raise _unreadable(path)
    return list(format.names(parts.files[0] if parts else path))


def _examples(path: Path, reading: "_Reading", empty: list[str] | None = None) -> list[Example]:
    intent.will_read(path, "texts")
    examples = list(_read_examples(path, reading, empty))
    if not examples:
        below = folder_of_parts(path) if path.is_dir() else None
        raise BadInput(
            f"{path} holds no texts",
            values={"expected": "at least one text", "found": "none", **left_out(path)},
            hint=f"data files are in {below}: give that folder" if below not in (None, path) else "",
        )
    return examples


def _read_examples(path: Path, reading: "_Reading", empty: list[str] | None) -> Iterator[Example]:
    for record in _records(path, reading.columns):
        try:
            yield reading.example(record)
        except EmptyValue:
            if empty is None:
                raise
            empty.append(record.where)


def _records(path: Path, columns: Columns) -> Iterator[Record]:
    format = format_of(path)
    if path.is_dir():
        parts = parts_of(path)
        if parts:
            return chain.from_iterable(_read(parts.format, file, columns) for file in parts.files)
        if TEXT_OPTION in columns.options.values():  # not instruction data
            return read_texts(path, columns)
        format = None
    if not path.exists() or format is None:
        raise _unreadable(path)
    return _read(format, path, columns)


def _read(format: Format, file: Path, columns: Columns) -> Iterator[Record]:
    refuse_pointer(file)
    return format.read(file, columns)


def _unreadable(path: Path) -> BadInput:
    if not path.exists():
        return BadInput(f"{path} does not exist", hint=TILDE if str(path).startswith("~") else "check the path")
    return BadInput(
        f"{path} is not data that can be read",
        values={
            "expected": f"a file ending in {', '.join(FORMATS)} (.gz and .zst too), a folder of such files, "
            "or one with a folder per class",
            "found": "a folder" if path.is_dir() else "a file of another kind",
        },
        hint="unpack archives, and save sheets as CSV" if path.is_file() else "",
    )


@dataclass(frozen=True)
class _Reading:
    """Which columns of a record become an example."""

    text_column: str
    label: LabelRule | None  # None: labels are not read
    format: str
    answered: bool = True  # False: prompts, whose responses are not read

    @property
    def columns(self) -> Columns:
        """The columns that are read."""
        label = (self.label.column,) if self.label else ()
        options = dict.fromkeys(label, LABEL_OPTION)
        if self.format == "alpaca":
            answer = ("output",) if self.answered else ()
            return Columns(("instruction", *answer, *label), ("input",), options)
        if self.format == "chat":
            return Columns(("messages", *label), BESIDE, options, instead=OTHER_COLUMN)
        return Columns((self.text_column, *label), options={self.text_column: TEXT_OPTION, **options})

    def example(self, record: Record) -> Example:
        """A record as an example.  Raises `BadInput`, which names the place and never a value."""
        if self.format == "alpaca":
            return Example("", self._label(record), alpaca_turns(record, answered=self.answered), record.where)
        if self.format == "chat":
            return Example("", self._label(record), chat_turns(record, answered=self.answered), record.where)
        text = record.text(self.text_column)
        hint = f"remove empty texts, or name another column with {TEXT_OPTION}; {DROPPING}"
        refuse_empty(text, record.where, self.text_column, hint=hint)
        return Example(text, self._label(record), where=record.where)

    def _label(self, record: Record) -> str | None:
        return None if self.label is None else self.label.label(record.values[self.label.column], record.where)
