"""What a folder of data holds: parts of one data set, or a folder per class with a text per file.

Parts:  data/train-00000-of-00002.parquet, …   one format, one split, no part missing; in order of name.
Texts:  data/sport/1.txt, data/sport/football/2.txt, …   the label is the first folder below `data`, here `sport`.
        They are the files that end in .txt; where there are none, all files.

Nothing is left out in silence: `left_out` counts it.
"""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import BadInput, some
from stages.data.opening import COMPRESSED, first_byte
from stages.data.readers import Format, format_of
from stages.data.records import RECORD_BYTES, Columns, Record, decode, refuse_empty
from stages.store.debris import is_debris
from stages.store.foreign import read_document

INVENTORY = ".asset.json"  # of a fetched asset: not a file that anybody misses
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json")  # of the library `datasets`
SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev|eval)(?:ing|set)?(?![a-z])", re.IGNORECASE)
SHARD = re.compile(r"(.*?)-?(\d+)-of-(\d+)\b.*")
REASONS = OUTSIDE, HIDDEN_ENTRIES, OTHERS, EMPTY = "outside class folders", "hidden", "of other kinds", "empty"


@dataclass(frozen=True)
class Parts:
    """Files of one data set, all of one format."""

    files: tuple[Path, ...]
    format: Format
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Texts:
    """(class, file) of each text, in order of class, then path; `left_out` counts the others by why."""

    files: tuple[tuple[str, Path], ...]
    left_out: Mapping[str, int]


def left_out(path: Path) -> dict[str, int]:
    """How many files of a folder of data are not read, by why; nothing for a file.  Raises `BadInput`."""
    if not path.is_dir():
        return {}
    found = parts_of(path) or texts_of(path)
    return {why: found.left_out[why] for why in REASONS if found.left_out.get(why)}


def parts_of(folder: Path) -> Parts | None:
    """The data files of a folder as parts of one data set; None if it holds none.  Raises `BadInput`."""
    entries = sorted(folder.iterdir())
    formats = {path: format for path in entries if path.is_file() and (format := _part_format(path))}
    if not formats:
        return None
    kinds = sorted({format.name for format in formats.values()})
    _refuse_several(folder, "formats", kinds)
    _refuse_several(folder, "splits", sorted({_split(path) for path in formats}))
    _refuse_copies(folder, list(formats))
    _refuse_missing(folder, list(formats))
    _refuse_classes_beside(folder, entries)
    files = [path for path in entries if path not in formats and path.name != INVENTORY]
    hidden = sum(map(_is_hidden, files))
    return Parts(tuple(formats), next(iter(formats.values())), {HIDDEN_ENTRIES: hidden, OTHERS: len(files) - hidden})


def folder_of_parts(root: Path) -> Path | None:
    """The first folder below `root` that holds data files, as a clone of a data set does in `data`."""
    return next((path.parent for path in sorted(_walk(root, Counter())) if _part_format(path)), None)


def texts_of(root: Path) -> Texts:
    """The texts of a folder per class.  Raises `BadInput` where there are no folders, or those of splits."""
    if not any(entry.is_dir() for entry in root.iterdir()):
        raise BadInput(
            f"{root} has no folders",
            values={"expected": "a folder per class, a text file per example"},
            hint="give the file itself for JSON, CSV or Parquet; move texts without a class into one folder below it",
        )
    count: Counter[str] = Counter()
    found = []
    for path in _walk(root, count):
        parts = tuple(unicodedata.normalize("NFC", part) for part in path.relative_to(root).parts)
        if len(parts) == 1:
            count[OUTSIDE] += 1
        elif not path.is_file() or format_of(path):
            count[OTHERS] += 1
        else:
            found.append((parts, path))
    named = [one for one in found if one[1].suffix.lower() == ".txt"] or found
    texts = [one for one in named if first_byte(one[1])]
    count.update({OTHERS: len(found) - len(named), EMPTY: len(named) - len(texts)})
    _refuse_splits(root, [parts for parts, _ in texts])
    return Texts(tuple((parts[0], path) for parts, path in sorted(texts)), count)


def read_texts(folder: Path, columns: Columns) -> Iterator[Record]:
    """A folder per class as records: the first of the columns is the text; the second, if any, is the label."""
    for label, path in texts_of(folder).files:
        text = decode(read_document(path, at_most=RECORD_BYTES).removeprefix(codecs.BOM_UTF8), str(path))
        refuse_empty(text, str(path), "the file's text")
        yield Record(str(path), dict(zip(columns.required, (text, label), strict=False)))


def _walk(root: Path, count: Counter[str]) -> Iterator[Path]:
    """All that is not a folder, at any depth; a link to a folder that it is in is not followed."""
    stack = [(root, frozenset([_identity(root)]))]
    while stack:
        folder, above = stack.pop()
        for path in folder.iterdir():
            if path.name == INVENTORY:
                continue
            if _is_hidden(path):
                count[HIDDEN_ENTRIES] += 1
            elif not path.is_dir():
                yield path
            elif _identity(path) not in above:
                stack.append((path, above | {_identity(path)}))
            else:
                count[OTHERS] += 1


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or is_debris(path.name)


def _part_format(path: Path) -> Format | None:
    return None if _is_hidden(path) or path.name.lower() in DESCRIPTIONS else format_of(path)


def _split(path: Path) -> str:
    found = SPLIT.search(path.name)
    return found[1].lower() if found else "of no split"


def _refuse_several(folder: Path, what: str, found: Sequence[str]) -> None:
    if len(found) > 1:
        raise BadInput(
            f"{folder} holds files of several {what}",
            values={"expected": "the parts of one data set", "found": ", ".join(found)},
            hint="give one file, or move those of one data set into a folder of their own",
        )


def _refuse_classes_beside(folder: Path, entries: Sequence[Path]) -> None:
    if any(entry.is_dir() for entry in entries) and texts_of(folder).files:
        raise BadInput(
            f"{folder} holds both data files and folders of texts",
            values={"expected": "the parts of one data set, or a folder per class"},
            hint="give the data file itself, or move it to another folder to read the texts",
        )


def _refuse_copies(folder: Path, files: Sequence[Path]) -> None:
    """`train.jsonl` and `train.jsonl.gz` are one file."""
    names = Counter(path.stem if path.suffix.lower() in COMPRESSED else path.name for path in files)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise BadInput(
            f"{folder} holds the same file compressed and not",
            values={"expected": "each part once", "found": f"{some(twice)} twice"},
            hint="remove one of the two, or give one file",
        )


def _refuse_missing(folder: Path, files: Sequence[Path]) -> None:
    """`train-00001-of-00002` alone is half a data set; two of `00001-of-00001` are two versions of it."""
    shards = [found for path in files if (found := SHARD.fullmatch(path.name))]
    for name, total in {(shard[1], shard[3]) for shard in shards}:
        there = sum((shard[1], shard[3]) == (name, total) for shard in shards)
        if there != int(total):
            raise BadInput(
                f"{folder} does not hold the parts of one data set",
                values={"expected": f"{int(total)} parts", "found": there},
                hint="copy what is missing into it and remove what is left of other versions; or give one file",
            )


def _refuse_splits(root: Path, texts: Sequence[tuple[str, ...]]) -> None:
    """`train/sport/1.txt`: the first folder is not the class."""
    names = {parts[0] for parts in texts}
    if all(SPLIT.fullmatch(name) for name in names) and any(len(parts) > 2 for parts in texts):
        raise BadInput(
            f"{root} holds a folder per split, not per class",
            values={"expected": "a folder per class", "found": some(sorted(names))},
            hint=f"give one of them: {root / min(names)}",
        )
