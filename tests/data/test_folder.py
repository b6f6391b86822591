"""Folders: a class per folder with texts at any depth, or the parts of one data set; what is skipped is counted."""

import gzip
import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from schemas.errors import BadInput
from stages.data.folder import INVENTORY, left_out
from stages.data.load import Example, load_examples
from tests import fleet
from tests.fleet import chainctl

SECRET = "xyzzy-Quetzalcoatl-4711"
BOM = b"\xef\xbb\xbf"


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def rows(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"text": text, "label": "a"} for text in texts]
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".csv":
        put(path, "text,label\n" + "".join(f"{text},a\n" for text in texts))
    else:
        put(path, "".join(json.dumps(record) + "\n" for record in records))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_examples(path)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_texts_at_any_depth_have_the_label_of_the_first_folder(tmp_path: Path) -> None:
    put(tmp_path / "tech/b.txt", "phone")
    put(tmp_path / "sport/1.txt", "goal")
    put(tmp_path / "sport/football/europe/1.txt", "cup")
    assert load_examples(tmp_path) == [Example("goal", "sport"), Example("cup", "sport"), Example("phone", "tech")]
    assert left_out(tmp_path) == {}


def test_what_is_skipped_is_counted_by_why(tmp_path: Path) -> None:
    put(tmp_path / "sport/1.txt", "goal")
    put(tmp_path / "sport/2.TXT", "cup")
    put(tmp_path / "loose.txt", "x")
    put(tmp_path / "README.md", "x")
    put(tmp_path / "sport/.DS_Store", b"\xff\0")
    put(tmp_path / "sport/Thumbs.db", b"\xff\0")
    put(tmp_path / ".git/sport/1.txt", "x")
    put(tmp_path / "sport/photo.jpg", b"\xff\xd8\xff")
    put(tmp_path / "sport/lost.tar.gz", b"\x1f\x8b")
    put(tmp_path / "sport/deep/notes.md", "x")
    put(tmp_path / "sport/0.txt", b"")
    put(tmp_path / "sport/deep/blank.txt", BOM + b" \n")
    assert load_examples(tmp_path) == [Example("goal", "sport"), Example("cup", "sport")]
    assert left_out(tmp_path) == {"outside class folders": 2, "hidden": 3, "of other kinds": 3, "empty": 2}


def test_a_command_says_once_what_it_skipped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("1", "2"):
        put(data / f"sport/{name}.txt", "goal")
    put(data / "sport/3.txt", "")
    put(data / "loose.txt", "x")
    done = chainctl("data", "split", data, "--devices", 1, "--iid", "--out", tmp_path / "one")
    assert f"2 files of {data} skipped: 1 outside class folders, 1 empty" in done.stdout
    assert done.stdout.count("skipped") == 1
    done = chainctl("data", "holdout", data, "--out", tmp_path / "two", "--json")
    assert json.loads(done.stdout)["skipped"] == {"empty": 1, "outside class folders": 1}
    done = chainctl("recipe", "new", tmp_path / "recipe.toml", "--data", data)
    assert done.stdout.count("2 files of") == 1


def test_the_inventory_of_a_fetched_asset_is_not_a_file_that_was_skipped(tmp_path: Path) -> None:
    put(tmp_path / "sport/1.txt", "goal")
    put(tmp_path / INVENTORY, "{}")
    assert left_out(tmp_path) == {}
    put(tmp_path / "parts/train.jsonl", '{"text": "goal", "label": "sport"}\n')
    put(tmp_path / "parts" / INVENTORY, "{}")
    assert left_out(tmp_path / "parts") == {}


def test_where_no_file_ends_in_txt_every_file_is_a_text(tmp_path: Path) -> None:
    put(tmp_path / "spam/00001.7c53336b37003a9286aba55d2945844c", "buy")
    put(tmp_path / "ham/49960", "hello")
    assert load_examples(tmp_path) == [Example("hello", "ham"), Example("buy", "spam")]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    put(tmp_path / "sport/1.txt", BOM + "gör".encode())
    assert load_examples(tmp_path) == [Example("gör", "sport")]


def test_a_text_in_another_encoding_is_refused_by_name_and_byte(tmp_path: Path) -> None:
    path = put(tmp_path / "sport/deep/1.txt", f"{SECRET} caf".encode() + b"\xe9")
    message = refusal(tmp_path)
    assert f"{path}: not UTF-8" in message
    assert f"at byte  {len(SECRET) + 4}" in message


def test_names_that_look_the_same_are_one_label(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    put(tmp_path / composed / "1.txt", "one")
    put(tmp_path / decomposed / "2.txt", "two")
    assert load_examples(tmp_path) == [Example("one", composed), Example("two", composed)]
    assert [example.label for example in load_examples(tmp_path, labels=[composed])] == [composed] * 2


def test_a_link_to_a_class_is_followed_and_a_circle_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/1.txt", "goal")
    root = tmp_path / "data"
    root.mkdir()
    (root / "sport").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(root)
    assert load_examples(root) == [Example("goal", "sport")]


def test_a_folder_per_split_is_refused_and_one_of_them_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / split / "pos" / "1.txt", SECRET)
    put(tmp_path / "train" / "urls_pos.txt", SECRET)  # as in the reviews of IMDB
    assert str(tmp_path / "test") in refusal(tmp_path)
    assert [example.label for example in load_examples(tmp_path / "test")] == ["pos"]


def test_a_folder_without_texts_says_what_it_skipped(tmp_path: Path) -> None:
    put(tmp_path / "sport/1.txt", " ")
    message = refusal(tmp_path)
    assert "holds no texts" in message
    assert "empty     1" in message


def test_a_clone_of_a_data_set_is_told_which_of_its_folders_to_give(tmp_path: Path) -> None:
    rows(tmp_path / "data/train-00000-of-00001.parquet", ["one"])
    put(tmp_path / "README.md", SECRET)
    assert f"hint: data files are in {tmp_path / 'data'}: give that folder" in refusal(tmp_path)
    assert len(load_examples(tmp_path / "data")) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "parts/a.jsonl"])
def test_what_git_lfs_left_in_place_of_data_is_named(name: str, tmp_path: Path) -> None:
    put(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    message = refusal(tmp_path / name.partition("/")[0])
    assert "is a pointer of Git LFS, not the file itself" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_parts_are_one_data_set_in_order_of_name(ending: str, tmp_path: Path) -> None:
    for number in (1, 0):
        rows(tmp_path / f"train-{number:05d}-of-00002.{ending}", [f"text {number}", f"more {number}"])
    put(tmp_path / "README.md", "x")
    put(tmp_path / "dataset_info.json", "{}")
    put(tmp_path / ".DS_Store", b"\xff")
    assert [example.text for example in load_examples(tmp_path)] == ["text 0", "more 0", "text 1", "more 1"]
    assert left_out(tmp_path) == {"hidden": 1, "of other kinds": 2}


def test_an_error_names_the_part_and_its_line(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl", ["one"])
    bad = rows(tmp_path / "b.jsonl", [SECRET, " "])
    assert f"{bad}, line 2: the text is empty" in refusal(tmp_path)


def test_parts_may_be_compressed(tmp_path: Path) -> None:
    plain = rows(tmp_path / "a.jsonl", ["one"])
    put(tmp_path / "b.jsonl.gz", gzip.compress(plain.read_bytes()))
    assert [example.text for example in load_examples(tmp_path)] == ["one", "one"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a.jsonl", "b.csv"), "several formats"),
        (("a.parquet", "b.jsonl"), "several formats"),
        (("train.jsonl", "test.jsonl"), "several splits"),
        (("reviews_train.csv", "reviews_test.csv"), "several splits"),
        (("training.csv", "testing.csv"), "several splits"),
        (("trainset.csv", "testset.csv"), "several splits"),
        (("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"), "several splits"),
        (("train-00001-of-00002.parquet",), "does not hold the parts of one data set"),
        (("train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"), "the parts of one data set"),
    ],
)
def test_files_that_are_not_one_data_set_are_refused(names: tuple[str, ...], says: str, tmp_path: Path) -> None:
    for name in names:
        rows(tmp_path / name, [SECRET])
    assert says in refusal(tmp_path)


def test_a_part_beside_its_compressed_copy_is_refused(tmp_path: Path) -> None:
    plain = rows(tmp_path / "a.jsonl", [SECRET])
    put(tmp_path / "a.jsonl.gz", gzip.compress(plain.read_bytes()))
    assert "compressed and not" in refusal(tmp_path)


def test_data_files_beside_folders_of_texts_are_refused(tmp_path: Path) -> None:
    rows(tmp_path / "labels.csv", [SECRET])
    put(tmp_path / "sport/1.txt", SECRET)
    assert "both data files and folders of texts" in refusal(tmp_path)


def test_every_command_that_reads_a_folder_says_what_it_skipped(tmp_path: Path, tiny_bert: Path) -> None:
    data = tmp_path / "data"
    for number, row in enumerate(fleet.texts(12)):
        put(data / row["label"] / "deep" / f"{number}.txt", row["text"])
    put(data / "loose.txt", SECRET)
    said = f"1 file of {data} skipped: 1 outside class folders"
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    model = ("--model", tiny_bert)
    federation = (*model, "--plan", tmp_path / "plan", "--state", tmp_path / "state", "--data", data)
    profiled = ("profile", *model, "--data", data, "--recipe", recipe, "--device", "one", "--out", tmp_path / "profile")
    assert said in chainctl(*profiled).stdout
    planned = ("plan", tmp_path / "profile", *model, "--recipe", recipe)
    chainctl(*planned, "--out", tmp_path / "plan", "--state", tmp_path / "state")
    done = chainctl("train-window", *federation, "--device", "one", "--out", tmp_path / "update")
    assert said in done.stdout
    assert "on 12 texts" in done.stdout
    done = chainctl("eval", *federation, "--out", tmp_path / "evaluation")
    assert said in done.stdout
    assert "on 12 texts" in done.stdout
    run = ("--devices", 1, "--rounds", 0, "--out", tmp_path / "run")
    done = chainctl("simulate", *model, "--data", data, "--test", data, "--recipe", recipe, *run)
    assert done.stdout.count(said) == 1
