"""Columns with other names: the refusal offers what works, and a command that was told them tells those after it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from schemas.errors import BadInput
from schemas.recipe import parse_recipe
from schemas.settings import PromptSettings
from stages.data.load import Example, load_examples
from stages.data.split import holdout_file, split_file
from tests.fleet import chainctl

SECRET = "xyzzy-Quetzalcoatl-4711"
ROWS = [("a", "one"), ("b", "two"), ("a", "three"), ("b", "four")]
EXAMPLES = [Example(text, label) for label, text in ROWS]


def table(path: Path, label: str, text: str) -> Path:
    path.write_text(f"{label},{text}\n" + "".join(f"{one},{two}\n" for one, two in ROWS))
    return path


def refusal(path: Path, **columns: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_examples(path, **columns)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
    return caught.value


def test_columns_that_differ_by_case_alone_are_offered_and_the_offer_works(tmp_path: Path) -> None:
    data = table(tmp_path / "d.csv", "LABEL", " Text")
    offered = re.search(r"give (.*), or in \[task\]", refusal(data).hint)
    assert offered is not None
    done = chainctl("data", "split", data, "--devices", 1, "--iid", "--out", tmp_path / "out", *shlex.split(offered[1]))
    assert "4 texts" in done.stdout
    assert load_examples(tmp_path / "out/device-00.jsonl") == EXAMPLES


def test_one_of_two_is_offered_and_the_other_is_to_be_listed(tmp_path: Path) -> None:
    data = table(tmp_path / "my data.csv", "Category", "Text")
    error = refusal(data)
    assert error.values == {"expected": "text, label", "found": "2 columns"}
    assert "--text-column Text --label-column NAME" in error.hint
    listing = re.search(r"to list the columns: chainctl (data columns .*)", error.hint)
    assert listing is not None
    assert chainctl(*shlex.split(listing[1])).stdout.splitlines() == ["Category", "Text"]
    assert "Category" not in str(error)


def test_two_that_differ_by_case_are_not_chosen_from(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"Text": SECRET, "TEXT": SECRET, "label": "a"}))
    assert "Text" not in refusal(path).hint.replace("--text-column", "")


def test_a_later_record_without_a_column_is_to_be_completed_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    whole = json.dumps({"text": "one", "label": "a"}) + "\n"
    path.write_text(whole + json.dumps({"text": SECRET}))
    error = refusal(path)
    assert "line 2: there is no column 'label'" in error.fact
    assert "remove the record" in error.hint
    assert "--label-column" not in error.hint


def test_a_first_line_that_is_a_text_is_never_shown_by_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"{SECRET} said nobody,a\nsecond,b\n")
    assert refusal(path).values["found"] == "2 columns"


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "folder"])
def test_columns_are_listed_for_people_and_machines(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    content = "id;Body\n7;one\n" if name == "d.csv" else json.dumps({"id": 7, "Body": "one"})
    (path / "part-0.jsonl" if name == "folder" else path).write_text(content)
    assert chainctl("data", "columns", path).stdout.splitlines() == ["id", "Body"]
    assert json.loads(chainctl("data", "columns", path, "--json").stdout)["columns"] == ["id", "Body"]


def test_columns_of_what_is_not_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("x")
    for path in (tmp_path / "d.txt", tmp_path / "absent.csv", tmp_path):
        assert chainctl("data", "columns", path, check=False).returncode == 3


def test_one_command_that_was_told_the_columns_is_enough(tmp_path: Path) -> None:
    data = table(tmp_path / "d.csv", "Category", "Body")
    named = ("--text-column", "Body", "--label-column", "Category")
    chainctl("data", "holdout", data, "--fraction", 0.5, *named, "--out", tmp_path / "data")
    train = tmp_path / "data/train.jsonl"
    chainctl("data", "split", train, "--devices", 2, "--iid", "--out", tmp_path / "shards")
    chainctl("recipe", "new", tmp_path / "recipe.toml", "--data", train)
    recipe = parse_recipe((tmp_path / "recipe.toml").read_text(), source="recipe.toml", environment={}, overrides=[])
    assert recipe.task.labels == ("a", "b")
    for shard in sorted((tmp_path / "shards").iterdir()):
        assert (
            len(load_examples(shard, text_column=recipe.task.text_column, label_column=recipe.task.label_column)) == 1
        )


def test_commands_that_are_told_the_columns_again_read_the_same(tmp_path: Path) -> None:
    """A recipe made from the source names its columns; so do scripts that name them in every command."""
    data = table(tmp_path / "d.csv", "Category", "Body")
    named = {"text_column": "Body", "label_column": "Category"}
    holdout_file(data, tmp_path / "data", fraction=0.5, seed=0, **named)  # type: ignore[arg-type]
    split_file(tmp_path / "data/train.jsonl", tmp_path / "out", devices=1, alpha=None, seed=0, **named)  # type: ignore[arg-type]
    shard = tmp_path / "out/device-00.jsonl"
    assert load_examples(shard, **named) == load_examples(shard)  # type: ignore[arg-type]
    assert load_examples(shard, text_column="Body", label_column=None) == load_examples(shard, label_column=None)


def test_a_file_with_other_columns_too_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"id,text,label\n7,{SECRET},a\n")
    assert "no column 'Body'" in str(refusal(path, text_column="Body", label_column="Category"))


def test_instruction_data_keeps_its_columns_and_its_label_has_the_standard_name(tmp_path: Path) -> None:
    alpaca = PromptSettings(format="alpaca")
    records = [{"instruction": f"say {n}", "output": "hello", "topic": "ab"[n % 2]} for n in range(8)]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    named = ("--format", "alpaca", "--label-column", "topic")
    chainctl("data", "holdout", data, *named, "--fraction", 0.5, "--out", tmp_path / "data")
    train = tmp_path / "data/train.jsonl"
    chainctl("data", "split", train, "--format", "alpaca", "--alpha", 1.0, "--devices", 2, "--out", tmp_path / "out")
    assert {example.label for example in load_examples(train, prompt=alpaca)} == {"a", "b"}


def test_a_missing_column_of_instruction_data_is_not_to_be_named_with_an_option(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": SECRET, "output": "b"}))
    with pytest.raises(BadInput) as caught:
        load_examples(path, label_column=None, prompt=PromptSettings(format="alpaca"))
    assert "--text-column" not in caught.value.hint
    assert "data columns" in caught.value.hint


@pytest.mark.parametrize(
    ("format", "header", "offer"),
    [
        (
            "alpaca",
            {"Instruction": "a", "Input": "b", "Output": "c"},
            "rename Instruction to instruction; rename Output",
        ),
        ("alpaca", {"instruction": "a", "Output": "c"}, "rename Output to output; "),
        ("chat", {"Messages": []}, "rename Messages to messages; "),
    ],
)
def test_columns_of_instruction_data_that_differ_by_case_are_to_be_renamed(
    format: str, header: dict[str, object], offer: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(header))
    with pytest.raises(BadInput) as caught:
        load_examples(path, label_column=None, prompt=PromptSettings.model_validate({"format": format}))
    assert caught.value.hint.startswith(offer)
