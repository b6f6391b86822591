"""Split a file of examples into one file per device, or into training and test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.errors import UsageProblem
from schemas.settings import PromptSettings
from stages.data.load import PLAIN, Example, load_examples
from stages.data.partition import device_names, drop_duplicates, holdout, partition
from stages.data.records import LABEL_OPTION, STANDARD, TEXT_OPTION
from stages.process import intent
from stages.store.files import complete_directory
from stages.store.output import check_output, refuse_overlap


def split_file(
    data: Path,
    out: Path,
    *,
    devices: int,
    alpha: float | None,
    seed: int,
    text_column: str = "text",
    label_column: str | None = "label",
    prompt: PromptSettings = PLAIN,
    allow_empty: bool = False,
    empty: list[str] | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write `out/<device>.jsonl` for every device; the number of texts per device.

    Nobody can read them who cannot read `data`.  The same files at `out` are left as they are.
    With `label_column = None` no labels are read, and `alpha` must be None.  `empty` is that of `load_examples`.
    Raises `BadInput`, `UsageProblem`.
    """
    if label_column is None and alpha is not None:
        raise UsageProblem(
            "label skew needs labels", values={"alpha": alpha}, hint="split with --iid, or name the --label-column"
        )
    refuse_overlap(out, data)
    check_output(out, force=force, or_holding=f"{device_names(devices)[0]}.jsonl")
    examples = load_examples(data, text_column=text_column, label_column=label_column, prompt=prompt, empty=empty)
    labels = [example.label or "" for example in examples]
    shares = partition(labels, devices=devices, alpha=alpha, seed=seed, allow_empty=allow_empty)
    files = dict(zip(device_names(devices), ([examples[index] for index in share] for share in shares), strict=True))
    _write(out, files, data, force=force)
    return {name: len(share) for name, share in files.items()}


def holdout_file(
    data: Path,
    out: Path,
    *,
    fraction: float,
    seed: int,
    text_column: str = "text",
    label_column: str | None = "label",
    prompt: PromptSettings = PLAIN,
    deduplicate: bool = False,
    empty: list[str] | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write `out/train.jsonl` and `out/test.jsonl`, as `split_file` does; the number of texts in each.

    Raises `BadInput`, `UsageProblem`.
    """
    refuse_overlap(out, data)
    check_output(out, force=force, or_holding="train.jsonl")
    loaded = load_examples(data, text_column=text_column, label_column=label_column, prompt=prompt, empty=empty)
    examples = drop_duplicates(loaded) if deduplicate else loaded
    train, test = holdout([example.label or "" for example in examples], fraction=fraction, seed=seed)
    shares = {"train": train, "test": test}
    _write(out, {name: [examples[index] for index in share] for name, share in shares.items()}, data, force=force)
    return {"train": len(train), "test": len(test), "dropped": len(loaded) - len(examples)}


def _write(out: Path, files: Mapping[str, Sequence[Example]], data: Path, *, force: bool) -> None:
    """Write `out/<name>.jsonl` for each name, for nobody who cannot read `data`."""
    if intent.is_dry_run():
        for name, share in files.items():
            intent.will_write(out / f"{name}.jsonl", len(to_jsonl(share)))
    with complete_directory(out, force=force, or_same=True, derived_from=data) as partial:
        for name, share in files.items():
            (partial / f"{name}.jsonl").write_bytes(to_jsonl(share))


def to_jsonl(examples: Sequence[Example]) -> bytes:
    """One object per line, with the standard columns whatever those of the source: who reads it names none."""
    records = map(_record, examples)
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()


def _record(example: Example) -> dict[str, object]:
    label = {} if example.label is None else {STANDARD[LABEL_OPTION]: example.label}
    if not example.turns:
        return {STANDARD[TEXT_OPTION]: example.text, **label}
    if example.turns[0][0] == "instruction":
        return {**dict(example.turns), **label}
    return {"messages": [{"role": role, "content": content} for role, content in example.turns], **label}
