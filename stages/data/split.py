"""Files of examples from files of examples: one a device, or training and test."""

import json
from collections.abc import Sequence
from pathlib import Path

from stages.data.load import Example, load_examples
from stages.data.partition import device_names, drop_duplicates, holdout, partition
from stages.store.files import complete_directory


def split_file(
    data: Path,
    out: Path,
    *,
    devices: int,
    alpha: float | None,
    seed: int,
    text_column: str = "text",
    label_column: str = "label",
    allow_empty: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Write `out/<device>.jsonl` for every device; texts a device.  Raises `BadInput`, `UsageProblem`."""
    examples = load_examples(data, text_column=text_column, label_column=label_column)
    labels = [example.label or "" for example in examples]
    shares = partition(labels, devices=devices, alpha=alpha, seed=seed, allow_empty=allow_empty)
    files = dict(zip(device_names(devices), ([examples[index] for index in share] for share in shares), strict=True))
    with complete_directory(out, force=force) as partial:
        for name, share in files.items():
            (partial / f"{name}.jsonl").write_bytes(to_jsonl(share, text_column, label_column))
    return {name: len(share) for name, share in files.items()}


def holdout_file(
    data: Path,
    out: Path,
    *,
    fraction: float,
    seed: int,
    text_column: str = "text",
    label_column: str = "label",
    deduplicate: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Write `out/train.jsonl` and `out/test.jsonl`; how many texts went where.  Raises `BadInput`, `UsageProblem`."""
    loaded = load_examples(data, text_column=text_column, label_column=label_column)
    examples = drop_duplicates(loaded) if deduplicate else loaded
    train, test = holdout([example.label or "" for example in examples], fraction=fraction, seed=seed)
    with complete_directory(out, force=force) as partial:
        for name, indices in (("train", train), ("test", test)):
            chosen = [examples[index] for index in indices]
            (partial / f"{name}.jsonl").write_bytes(to_jsonl(chosen, text_column, label_column))
    return {"train": len(train), "test": len(test), "dropped": len(loaded) - len(examples)}


def to_jsonl(examples: Sequence[Example], text_column: str = "text", label_column: str = "label") -> bytes:
    """One object a line, with the columns that the source has."""
    records = ({text_column: example.text, label_column: example.label} for example in examples)
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()
