"""Files from files: what is split over devices or held out is, taken together, what was there before."""

import json
from collections import Counter
from pathlib import Path

import pytest

from schemas.errors import BadInput, UsageProblem
from stages.data.load import Example, data_digest, load_examples
from stages.data.partition import partition
from stages.data.split import holdout_file, split_file, to_jsonl
from tests.fleet import chainctl

EXAMPLES = [Example(f'text {index}: "grüße", 你好,\nline\u2028two 🙂', "abc"[index % 3]) for index in range(60)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(to_jsonl(EXAMPLES))
    return path


def test_what_is_written_reads_back_equal(data: Path) -> None:
    assert load_examples(data) == EXAMPLES
    records = [json.loads(line) for line in data.read_bytes().split(b"\n")[:-1]]
    assert records == [{"text": example.text, "label": example.label} for example in EXAMPLES]


@pytest.mark.parametrize("alpha", [None, 0.1, 1e6])
def test_the_files_of_all_devices_hold_every_example_once(data: Path, alpha: float | None, tmp_path: Path) -> None:
    sizes = split_file(data, tmp_path / "out", devices=7, alpha=alpha, seed=5)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"device-{index:02d}.jsonl" for index in range(7)]
    shares = [load_examples(file) for file in files]
    assert list(sizes.values()) == [len(share) for share in shares]
    assert Counter(example for share in shares for example in share) == Counter(EXAMPLES)
    indices = partition([example.label or "" for example in EXAMPLES], devices=7, alpha=alpha, seed=5)
    assert shares == [[EXAMPLES[index] for index in share] for share in indices]


def test_the_same_split_is_the_same_bytes_whatever_the_format_was(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    quoted = "".join('"{}",{}\n'.format(e.text.replace('"', '""'), e.label) for e in EXAMPLES)
    table.write_bytes(f"text,label\n{quoted}".encode())
    split_file(data, tmp_path / "one", devices=4, alpha=0.5, seed=1)
    split_file(table, tmp_path / "two", devices=4, alpha=0.5, seed=1)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_other_columns_get_the_standard_names(tmp_path: Path) -> None:
    source = tmp_path / "d.csv"
    source.write_bytes(b"stars,review\na,one\nb,two\n")
    split_file(source, tmp_path / "out", devices=1, alpha=None, seed=0, text_column="review", label_column="stars")
    assert load_examples(tmp_path / "out" / "device-00.jsonl") == [Example("one", "a"), Example("two", "b")]


def test_training_and_test_files_are_disjoint_and_complete(data: Path, tmp_path: Path) -> None:
    sizes = holdout_file(data, tmp_path / "out", fraction=0.2, seed=9)
    train, test = (load_examples(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "test"))
    assert sizes == {"train": 48, "test": 12, "dropped": 0}
    assert (len(train), len(test)) == (48, 12)
    assert Counter(train + test) == Counter(EXAMPLES)
    assert Counter(example.label for example in test) == {"a": 4, "b": 4, "c": 4}


def test_with_deduplication_no_text_is_both_trained_and_tested_on(tmp_path: Path) -> None:
    examples = [Example(f"text {index % 20}", "ab"[index % 2]) for index in range(60)]
    source = tmp_path / "d.jsonl"
    source.write_bytes(to_jsonl(examples))
    sizes = holdout_file(source, tmp_path / "out", fraction=0.3, seed=0, deduplicate=True)
    train, test = (load_examples(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "test"))
    assert sizes == {"train": 14, "test": 6, "dropped": 40}
    assert not {example.text for example in train} & {example.text for example in test}
    assert len({example.text for example in train + test}) == 20


GAPS = [("one", "a"), ("", "a"), ("two", ""), ("  ", "b"), ("three", "b"), ("four", "a"), ("five", "b")]


@pytest.mark.parametrize("name", ["gaps.csv", "gaps.jsonl"])
@pytest.mark.parametrize("command", [["split", "--devices", 1, "--iid"], ["holdout", "--fraction", 0.5]])
def test_records_without_a_text_or_a_label_are_left_out_where_that_is_asked_for(
    name: str, command: list[object], tmp_path: Path
) -> None:
    source = tmp_path / name
    if name == "gaps.csv":
        source.write_text("".join(f"{text};{label}\n" for text, label in [("text", "label"), *GAPS]))
    else:  # what has no value is null there, as pandas writes it
        source.write_text(
            "".join(f"{json.dumps({'text': text or None, 'label': label or None})}\n" for text, label in GAPS)
        )
    options = [source, *command[1:], "--out", tmp_path / "out"]
    refused = chainctl("data", command[0], *options, check=False)
    assert refused.returncode == 3
    assert "--drop-empty" in refused.stderr
    done = chainctl("data", command[0], *options, "--drop-empty")
    assert "3 without a text or a label left out" in done.stdout
    written = Counter(example for file in (tmp_path / "out").iterdir() for example in load_examples(file))
    assert written == Counter(Example(text, label) for text, label in GAPS if text.strip() and label)


def test_nothing_but_records_without_a_text_is_no_data(tmp_path: Path) -> None:
    source = tmp_path / "d.csv"
    source.write_bytes(b"text,label\n,a\n,b\n")
    with pytest.raises(BadInput, match="holds no texts"):
        holdout_file(source, tmp_path / "out", fraction=0.5, seed=0, empty=[])


def test_an_existing_folder_is_replaced_only_with_force(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    split_file(data, out, devices=5, alpha=None, seed=0)
    before = data_digest(load_examples(out / "device-00.jsonl"))
    with pytest.raises(UsageProblem, match="exists already"):
        split_file(data, out, devices=2, alpha=None, seed=0)
    with pytest.raises(UsageProblem, match="exists already"):
        holdout_file(data, out, fraction=0.5, seed=0)
    assert data_digest(load_examples(out / "device-00.jsonl")) == before
    split_file(data, out, devices=2, alpha=None, seed=0, force=True)
    assert sorted(file.name for file in out.iterdir()) == ["device-00.jsonl", "device-01.jsonl"]


def test_a_refused_split_leaves_nothing_behind(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fewer examples than devices"):
        split_file(data, tmp_path / "out", devices=61, alpha=None, seed=0)
    with pytest.raises(BadInput, match="between 0 and 1"):
        holdout_file(data, tmp_path / "out", fraction=1.0, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]


def test_empty_devices_are_files_with_nothing_in_them(data: Path, tmp_path: Path) -> None:
    sizes = split_file(data, tmp_path / "out", devices=70, alpha=None, seed=0, allow_empty=True)
    assert sum(sizes.values()) == 60
    for name, size in sizes.items():
        assert ((tmp_path / "out" / f"{name}.jsonl").read_bytes() == b"") == (size == 0)
