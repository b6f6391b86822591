"""One rule for labels: the same in every format, whatever their types, and compared as a plan spells them."""

import json
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from schemas.errors import BadInput
from schemas.settings import TaskSettings
from stages.data.load import load_examples
from tests.fleet import chainctl

SECRET = "xyzzy-Quetzalcoatl-4711"
DECOMPOSED = unicodedata.normalize("NFD", "caf\u00e9")


def in_every_format(folder: Path, values: list[Any], spelled: list[str]) -> list[Path]:
    """The values as JSON and Parquet have them, and as CSV and folders spell them."""
    lines = [json.dumps({"text": "one", "label": value}) for value in values]
    (folder / "d.jsonl").write_text("\n".join(lines))
    (folder / "d.json").write_text(f"[{','.join(lines)}]")
    (folder / "d.csv").write_text("text,label\n" + "".join(f"one,{value}\n" for value in spelled))
    parquet.write_table(pa.table({"text": ["one"] * len(values), "label": values}), folder / "d.parquet")
    return [folder / name for name in ("d.jsonl", "d.json", "d.csv", "d.parquet")]


def labels_of(path: Path, **options: Any) -> list[str | None]:
    return [example.label for example in load_examples(path, **options)]


@pytest.mark.parametrize(
    ("values", "spelled", "labels"),
    [
        ([True, False], ["True", "FALSE"], ["true", "false"]),
        ([1, 0, -3], ["1", "0", "-3"], ["1", "0", "-3"]),
        ([1.0, 0.0, 1e3], ["1.0", "0.0", "1000.0"], ["1", "0", "1000"]),
        ([2.5, 0.25], ["2.5", "0.25"], ["2.5", "0.25"]),
        (["sport ", " tech", "a b"], ["sport ", " tech", "a b"], ["sport", "tech", "a b"]),
        (["sport\n", "tech\t"], ["sport", "tech\t"], ["sport", "tech"]),
        ([DECOMPOSED, "caf\u00e9"], [DECOMPOSED, "caf\u00e9"], ["caf\u00e9", "caf\u00e9"]),
        (
            ["007", "1.10", "1.1", "1.", "v1.0"],
            ["007", "1.10", "1.1", "1.", "v1.0"],
            ["007", "1.10", "1.1", "1.", "v1.0"],
        ),
        (["true", "1.0"], ["true", "1.0"], ["true", "1"]),
        (["null", "None"], ["null", "None"], ["null", "None"]),
    ],
)
def test_every_format_has_the_same_labels(
    values: list[Any], spelled: list[str], labels: list[str], tmp_path: Path
) -> None:
    for path in in_every_format(tmp_path, values, spelled):
        assert labels_of(path) == labels


@pytest.mark.parametrize("value", [None, "", "  "])
def test_nothing_is_no_label_in_every_format(value: str | None, tmp_path: Path) -> None:
    for path in in_every_format(tmp_path, ["a", value], ["a", value or ""]):
        place = {"d.jsonl": "line 2", "d.json": "record 2, line 1", "d.csv": "line 3", "d.parquet": "row 2"}[path.name]
        with pytest.raises(BadInput, match=f"{place}: the label is empty"):
            load_examples(path)


def test_decimals_of_parquet_are_numbers(tmp_path: Path) -> None:
    values = pa.array([Decimal("1.00"), Decimal("2.50")], pa.decimal128(5, 2))
    parquet.write_table(pa.table({"text": ["one", "two"], "label": values}), tmp_path / "d.parquet")
    assert labels_of(tmp_path / "d.parquet") == ["1", "2.5"]


@pytest.mark.parametrize("value", ['["%s"]', '{"a": "%s"}', "Infinity"])
def test_other_types_are_refused_with_their_place(value: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"text": "one", "stars": {value.replace("%s", SECRET)}}}\n')
    with pytest.raises(BadInput, match="line 1: the value is not a label") as caught:
        load_examples(path, label_column="stars")
    assert "stars" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_plans_own_spelling_is_the_label(tmp_path: Path) -> None:
    for path in in_every_format(tmp_path, [True, False], ["True", "FALSE"]):
        assert labels_of(path, labels=["True", "False"]) == ["True", "False"]
        assert labels_of(path, labels=["true", "false"]) == ["true", "false"]
    for path in in_every_format(tmp_path, [1.0, 2.0], ["1", "2.0"]):
        assert labels_of(path, labels=["1", "2"]) == ["1", "2"]
        assert labels_of(path, labels=["1.0", "2.0"]) == ["1.0", "2.0"]
    for path in in_every_format(tmp_path, ["1", "1.0"], ["1", "1.0"]):
        assert labels_of(path, labels=["1", "1.0"]) == ["1", "1.0"]  # codes: the plan says that they are two


def test_a_label_that_looks_like_the_plans_is_the_plans(tmp_path: Path) -> None:
    task = TaskSettings(labels=(DECOMPOSED, "b"))
    assert task.labels == ("caf\u00e9", "b")
    for path in in_every_format(tmp_path, [DECOMPOSED, "b "], [DECOMPOSED, "b "]):
        assert labels_of(path, labels=task.labels) == ["caf\u00e9", "b"]


def test_a_label_set_has_no_two_labels_that_look_the_same() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        TaskSettings(labels=(DECOMPOSED, "caf\u00e9"))


def test_one_number_written_two_ways_is_refused_where_no_plan_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\none,401\ntwo,401.0\n")
    with pytest.raises(BadInput, match="line 3: two labels are one number"):
        load_examples(path)


@pytest.mark.parametrize(
    "command", [("data", "split", "--devices", 1, "--iid"), ("data", "holdout"), ("recipe", "new")]
)
def test_a_label_that_is_too_long_is_refused_before_anything_is_written(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"text": "one", "label": "a"}) + "\n" + json.dumps({"text": "two", "label": "w" * 300}))
    group, name, *options = command
    out = [tmp_path / "out", "--data", data] if group == "recipe" else [data, "--out", tmp_path / "out"]
    done = chainctl(group, name, *out, *options, check=False)
    assert done.returncode == 3
    assert f"{data}, line 2: the label is too long" in done.stderr
    assert "300 characters" in done.stderr
    assert "at most 256" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_longest_label_is_taken(tmp_path: Path) -> None:
    for path in in_every_format(tmp_path, ["w" * 256], ["w" * 256]):
        assert labels_of(path) == ["w" * 256]
