"""Labelled texts from JSONL, CSV, Parquet or a folder per class.

An error names the file, the line (or row), the column, a length and what was expected; never a value, because the
values are what must not leave the device.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.base import canonical_json
from schemas.errors import BadInput
from schemas.settings import TaskSettings
from stages.data.readers import Row, read_csv, read_folder, read_jsonl, read_parquet

READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


@dataclass(frozen=True)
class Example:
    """A text and its label; the label is None where labels were not asked for."""

    text: str
    label: str | None

    def __repr__(self) -> str:
        return f"Example({len(self.text)} characters)"  # never the text, not even in a traceback


def load_examples(
    path: Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    labels: Sequence[str] = (),
) -> list[Example]:
    """Every example of `path`, in order.

    `label_column = None` leaves labels unread; `labels`, where given, are the only ones allowed.  Raises `BadInput`.
    """
    allowed = frozenset(labels)
    examples = [_example(row, label_column, allowed) for row in _rows(path, text_column, label_column)]
    if not examples:
        raise BadInput(f"{path} holds no texts", values={"expected": "at least one text", "found": "none"})
    return examples


def load_labelled(path: Path, task: TaskSettings) -> list[Example]:
    """Every example of `path` with its label, as `task` names the columns and, where it does, the labels.

    A task without labels (causal-lm) leaves them unread.
    """
    label_column = task.label_column if task.kind == "text-classification" else None
    return load_examples(path, text_column=task.text_column, label_column=label_column, labels=task.labels)


def label_indices(examples: Iterable[Example], labels: Sequence[str]) -> list[int]:
    """Each example's label as an index into `labels`."""
    position = {label: index for index, label in enumerate(labels)}
    return [position[example.label or ""] for example in examples]


def data_digest(examples: Iterable[Example], *, salt: str = "") -> str:
    """SHA-256 over the texts and labels in order, whatever file they came from.

    A salt that names the plan and the device keeps the digest from being compared across federations.
    """
    digest = hashlib.sha256(canonical_json(["chainctl data", salt]))
    for example in examples:
        digest.update(canonical_json([example.text, example.label]))
    return f"sha256:{digest.hexdigest()}"


def label_set(examples: Iterable[Example]) -> tuple[str, ...]:
    """The distinct labels, sorted."""
    return tuple(sorted({example.label for example in examples if example.label is not None}))


def _rows(path: Path, text_column: str, label_column: str | None) -> Iterator[Row]:
    if path.is_dir():
        return read_folder(path, label_column)
    reader = READERS.get(path.suffix.lower())
    if not path.exists() or reader is None:
        raise BadInput(
            f"{path} is no data that can be read",
            values={
                "expected": f"a file ending in {', '.join(READERS)}, or a folder with a folder per class",
                "found": "a file of another kind" if path.exists() else "nothing",
            },
        )
    return reader(path, text_column, label_column)


def _example(row: Row, label_column: str | None, allowed: frozenset[str]) -> Example:
    if not row.text.strip():
        raise BadInput(
            f"{row.where}: the text is empty",
            values={"column": row.text_column, "length": f"{len(row.text)} characters", "expected": "some text"},
            hint="remove empty texts, or name another column with --text-column",
        )
    if label_column is None:
        return Example(row.text, None)
    if not row.label:
        raise BadInput(f"{row.where}: the label is empty", values={"column": label_column, "expected": "a label"})
    if allowed and row.label not in allowed:
        raise BadInput(
            f"{row.where}: the label is not one of the plan's",
            values={
                "column": label_column,
                "length": f"{len(row.label)} characters",
                "expected": f"one of {', '.join(sorted(allowed))}",
            },
            hint="the label set is fixed by the plan; see [task] labels in the recipe",
        )
    return Example(row.text, row.label)
