"""Reading labelled texts: four formats mean the same, and a refusal names the place and never the text.

Every refusal is checked against a secret that stands in the refused data: neither the message nor the printed
traceback may hold it.
"""

import csv
import io
import json
import re
import subprocess
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from schemas.errors import BadInput
from stages.data.load import Example, data_digest, label_set, load_examples
from stages.data.records import Record

SECRET = "xyzzy-Quetzalcoatl-4711"
BOM = b"\xef\xbb\xbf"
EXAMPLES = [  # in order of label, as a folder per class has them
    Example("plain", "cold"),
    Example("a comma, a \"quote\" and 'another'", "cold"),
    Example("two\nlines\n\nand a blank one", "cold"),
    Example("  spaces kept \t", "warm"),
    Example("grüße, 你好, 🙂, line\u2028separator, next\x85line", "warm"),
    Example("null", "warm"),
]
FORMATS = ("jsonl", "csv", "parquet", "folder")


def jsonl_bytes(examples: Sequence[Example]) -> bytes:
    return "".join(json.dumps({"label": e.label, "text": e.text}) + "\n" for e in examples).encode()


def csv_bytes(examples: Sequence[Example]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["text", "label"])
    writer.writerows([e.text, e.label] for e in examples)
    return buffer.getvalue().encode()


def write_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    parquet.write_table(pa.Table.from_pydict(columns), path)
    return path


def write(folder: Path, name: str, examples: Sequence[Example]) -> Path:
    if name == "folder":
        root = folder / "classes"
        for index, example in enumerate(examples):
            assert example.label is not None
            (root / example.label).mkdir(parents=True, exist_ok=True)
            (root / example.label / f"{index:04d}.txt").write_bytes(example.text.encode())
        return root
    path = folder / f"data.{name}"
    if name == "jsonl":
        path.write_bytes(jsonl_bytes(examples))
    elif name == "csv":
        path.write_bytes(csv_bytes(examples))
    else:
        write_parquet(path, {"text": [e.text for e in examples], "label": [e.label for e in examples]})
    return path


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(
    path: Path, *, text_column: str = "text", label_column: str | None = "label", labels: Sequence[str] = ()
) -> str:
    """What the refusal says; it and its traceback are free of the secret."""
    with pytest.raises(BadInput) as caught:
        load_examples(path, text_column=text_column, label_column=label_column, labels=labels)
    message = str(caught.value)
    assert str(path) in message
    assert SECRET not in message
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return message


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    assert load_examples(write(tmp_path, name, EXAMPLES)) == EXAMPLES


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts_without_labels(name: str, tmp_path: Path) -> None:
    loaded = load_examples(write(tmp_path, name, EXAMPLES), label_column=None)
    assert loaded == [Example(example.text, None) for example in EXAMPLES]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).filter(str.strip),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_survives_every_format_and_the_digest_with_it(texts: list[str]) -> None:
    examples = [Example(text, "cold") for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            loaded = load_examples(write(Path(folder), name, examples))
            assert loaded == examples
            assert data_digest(loaded) == data_digest(examples)


def test_the_digest_differs_by_salt_text_label_and_order() -> None:
    others = [
        data_digest(EXAMPLES),
        data_digest(EXAMPLES, salt="plan device-00"),
        data_digest(EXAMPLES, salt="plan device-01"),
        data_digest(EXAMPLES[::-1]),
        data_digest(EXAMPLES[:-1]),
        data_digest([Example("plaim", "cold"), *EXAMPLES[1:]]),
        data_digest([Example("plain", "warm"), *EXAMPLES[1:]]),
        data_digest([Example("plain", None), *EXAMPLES[1:]]),
    ]
    assert len(set(others)) == len(others)
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in others)
    assert data_digest(EXAMPLES, salt="plan device-00") == others[1]


def test_the_digest_does_not_confuse_where_a_text_ends() -> None:
    assert data_digest([Example("ab", "c")]) != data_digest([Example("a", "bc")])
    assert data_digest([Example("a", "b"), Example("c", "d")]) != data_digest([Example('a","b"', "c")])


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_byte_order_mark_is_skipped(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, EXAMPLES)
    path.write_bytes(BOM + path.read_bytes())
    assert load_examples(path) == EXAMPLES


def test_windows_line_ends_mean_the_same(tmp_path: Path) -> None:
    simple = [Example("one", "a"), Example("two", "b")]
    lines = put(tmp_path, "d.jsonl", BOM + jsonl_bytes(simple).replace(b"\n", b"\r\n"))
    table = put(tmp_path, "d.csv", b"text,label\r\none,a\r\ntwo,b\r\n")
    assert load_examples(lines) == load_examples(table) == simple


def test_a_last_line_without_an_end_counts(tmp_path: Path) -> None:
    simple = [Example("one", "a"), Example("two", "b")]
    assert load_examples(put(tmp_path, "d.jsonl", jsonl_bytes(simple).rstrip(b"\n"))) == simple
    assert load_examples(put(tmp_path, "d.csv", b"text,label\none,a\ntwo,b")) == simple


def test_blank_lines_at_the_end_are_allowed(tmp_path: Path) -> None:
    simple = [Example("one", "a")]
    assert load_examples(put(tmp_path, "d.jsonl", jsonl_bytes(simple) + b"\n\n")) == simple
    assert load_examples(put(tmp_path, "d.csv", b"text,label\none,a\n\n\n")) == simple


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.JSONL", jsonl_bytes(EXAMPLES))) == EXAMPLES
    assert load_examples(put(tmp_path, "d.ndjson", jsonl_bytes(EXAMPLES))) == EXAMPLES


def test_a_csv_field_may_be_longer_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    long = "w" * 200_000
    assert load_examples(put(tmp_path, "d.csv", f"text,label\n{long},a\n".encode())) == [Example(long, "a")]


def test_integer_class_ids_are_labels(tmp_path: Path) -> None:
    expected = [Example("one", "0"), Example("two", "1")]
    lines = put(tmp_path, "d.jsonl", b'{"text": "one", "label": 0}\n{"text": "two", "label": 1}\n')
    assert load_examples(lines, labels=("0", "1")) == expected
    assert load_examples(write_parquet(tmp_path / "d.parquet", {"text": ["one", "two"], "label": [0, 1]})) == expected


def test_columns_may_have_other_names_and_neighbours(tmp_path: Path) -> None:
    expected = [Example("one", "a")]
    lines = put(tmp_path, "d.jsonl", b'{"id": 7, "review": "one", "stars": "a"}\n')
    table = put(tmp_path, "d.csv", b"id,stars,review\n7,a,one\n")
    rows = write_parquet(tmp_path / "d.parquet", {"id": [7], "review": ["one"], "stars": ["a"]})
    for path in (lines, table, rows):
        assert load_examples(path, text_column="review", label_column="stars") == expected


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, "folder", EXAMPLES)
    (root / "cold" / ".DS_Store").write_bytes(b"\xff\0")
    (root / ".git").mkdir()
    (root / ".git" / "text").write_bytes(b"not data")
    (root / "README.txt").write_bytes(b"not data")
    assert load_examples(root) == EXAMPLES


def test_label_set_is_sorted_and_distinct() -> None:
    assert label_set([Example("a", "z"), Example("b", "b"), Example("c", "z"), Example("d", None)]) == ("b", "z")


def test_neither_an_example_nor_a_row_shows_its_text() -> None:
    assert SECRET not in repr(Example(SECRET, SECRET))
    assert SECRET not in repr([Record("file, line 1", {"text": SECRET})])


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (b'{"text": "one", "label": "a"}\n{"body": "%b", "label": "a"}\n', "text"),
        (b'{"text": "one", "label": "a"}\n{"text": "%b"}\n', "label"),
    ],
)
def test_a_missing_json_key_is_named_with_its_line(data: bytes, missing: str, tmp_path: Path) -> None:
    path = put(tmp_path, "d.jsonl", data % SECRET.encode())
    assert f"{path}, line 2: there is no column '{missing}'" in refusal(path)


def test_a_missing_csv_or_parquet_column_is_named(tmp_path: Path) -> None:
    table = put(tmp_path, "d.csv", f"body,label\n{SECRET},a\n".encode())
    message = refusal(table)
    assert f"{table}, line " in message
    assert "'text'" in message
    assert "'label'" in refusal(write_parquet(tmp_path / "d.parquet", {"text": [SECRET], "klass": ["a"]}))


def test_a_csv_without_column_names_never_has_its_first_text_shown(tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", f"{SECRET} said nobody,a\nsecond,b\n".encode())
    assert "'text'" in refusal(path)


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet"])
def test_an_unknown_label_is_refused_with_its_place_and_not_shown(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, [Example("one", "cold"), Example(f"{SECRET} two", SECRET)])
    message = refusal(path, labels=("warm", "cold"))
    place = {"jsonl": "line 2", "csv": "line 3", "parquet": "row 2"}[name]
    assert f"{path}, {place}: the label is not one of the plan's" in message
    assert "column" in message
    assert "label" in message
    assert "cold, warm" in message
    assert f"{len(SECRET)} characters" in message


def test_an_unknown_class_folder_is_refused_without_its_text(tmp_path: Path) -> None:
    root = write(tmp_path, "folder", [Example(SECRET, "cold"), Example(SECRET, "hot")])
    assert "0001.txt: the label is not one of the plan's" in refusal(root, labels=("cold", "warm"))


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("empty", ["", "   ", " \t\n "])
def test_an_empty_text_is_refused_with_its_place(name: str, empty: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, [Example(f"{SECRET} first", "cold"), Example(empty, "cold")])
    message = refusal(path)
    end = 3 + empty.count("\n")  # a quoted CSV text may span lines; the last one is named
    place = {"jsonl": "line 2", "csv": f"line {end}", "parquet": "row 2"}[name]
    assert f"{path}, {place}: the text is empty" in message
    assert "text" in message
    assert f"{len(empty)} characters" in message


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet"])
def test_an_empty_label_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, [Example("one", "cold"), Example(SECRET, "")])
    place = {"jsonl": "line 2", "csv": "line 3", "parquet": "row 2"}[name]
    assert f"{path}, {place}: the label is empty" in refusal(path)


def test_bytes_that_are_not_utf8_are_refused_with_line_and_offset(tmp_path: Path) -> None:
    secret = SECRET.encode()
    lines = put(tmp_path, "d.jsonl", b'{"text": "one", "label": "a"}\n{"text": "' + secret + b'\xe9", "label": "a"}\n')
    message = refusal(lines)
    assert f"{lines}, line 2: not UTF-8" in message
    assert str(len(b'{"text": "' + secret)) in message
    table = put(tmp_path, "d.csv", b"text,label\none,a\n" + secret + b"\xe9,a\n")
    assert f"{table}, line 3: not UTF-8" in refusal(table)
    root = write(tmp_path, "folder", [Example("one", "a")])
    bad = put(root / "a", "0009.txt", secret + b"\xff")
    assert f"{bad}: not UTF-8" in refusal(root)


def test_utf16_is_refused(tmp_path: Path) -> None:
    assert "not UTF-8" in refusal(put(tmp_path, "d.csv", f"text,label\n{SECRET},a\n".encode("utf-16")))


def test_a_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = SECRET.encode() + b"\xff"
    ends = np.array([0, len(raw)], dtype=np.int32).tobytes()
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(raw))
    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table({"text": broken, "label": pa.array(["a"])}), path)
    refusal(path)


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
@pytest.mark.parametrize("data", [b"", BOM, b"\n\n"])
def test_a_file_with_nothing_in_it_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    assert "holds no texts" in refusal(put(tmp_path, name, data))


def test_a_table_of_column_names_alone_is_refused(tmp_path: Path) -> None:
    assert "holds no texts" in refusal(put(tmp_path, "d.csv", b"text,label\n"))
    empty = tmp_path / "d.parquet"
    parquet.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), empty)
    assert "holds no texts" in refusal(empty)


def test_a_folder_without_classes_or_texts_is_refused(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    put(flat, "a.txt", SECRET.encode())
    assert "has no folders" in refusal(flat)
    hollow = tmp_path / "hollow"
    (hollow / "cold").mkdir(parents=True)
    assert "holds no texts" in refusal(hollow)


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "%s", "label": "a"',
        '{"text": "%s" "label": "a"}',
        "%s",
        '"%s"',
        '["%s", "a"]',
        '{"text": "%s", "label": "a"} {"text": "%s", "label": "a"}',
        '{"text": "%s", "label": "a"},',
        "[" * 100_000 + '"%s"',
    ],
)
def test_a_line_that_is_not_a_json_object_is_refused(line: str, tmp_path: Path) -> None:
    good = '{"text": "one", "label": "a"}\n'
    path = put(tmp_path, "d.jsonl", (good + line.replace("%s", SECRET) + "\n" + good).encode())
    assert f"{path}, line 2: not a JSON object" in refusal(path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "d.jsonl", f'{{"text": "one", "label": "a", "text": "{SECRET}"}}\n'.encode())
    message = refusal(path)
    assert f"{path}, line 1" in message
    assert "twice" in message


def test_a_csv_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    refusal(put(tmp_path, "d.csv", f"text,text,label\none,{SECRET},a\n".encode()))


@pytest.mark.parametrize("value", ["7", "1.5", "null", "true", "NaN", '["%s"]', '{"body": "%s"}'])
def test_a_text_that_is_not_a_string_is_refused_with_its_column(value: str, tmp_path: Path) -> None:
    line = f'{{"review": {value.replace("%s", SECRET)}, "label": "a"}}\n'
    path = put(tmp_path, "d.jsonl", ('{"review": "one", "label": "a"}\n' + line).encode())
    message = refusal(path, text_column="review")
    assert f"{path}, line 2: the value is not a text" in message
    assert "review" in message


def test_a_parquet_value_that_is_not_a_string_is_refused_with_row_and_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", {"text": [SECRET, None], "label": ["a", "a"]})
    message = refusal(path)
    assert f"{path}, row 2: the value is not a text" in message
    assert "text" in message


def test_parquet_rows_are_counted_over_batches(tmp_path: Path) -> None:
    texts: list[object] = [SECRET] * 3000
    texts[2600] = " "
    path = write_parquet(tmp_path / "d.parquet", {"text": texts, "label": ["a"] * 3000})
    assert f"{path}, row 2601: the text is empty" in refusal(path)


@pytest.mark.parametrize(("line", "found"), [(f"{SECRET}", 1), (f"{SECRET},a,b", 3), (f"one, {SECRET}, two,a", 4)])
def test_a_csv_line_with_another_number_of_fields_is_refused(line: str, found: int, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", f"text,label\none,a\n{line}\n".encode())
    message = refusal(path)
    assert f"{path}, line 3: wrong number of fields" in message
    assert f"{found} fields" in message


@pytest.mark.parametrize("line", [f'"{SECRET}', f'"{SECRET}" more,a'])
def test_a_csv_quote_out_of_place_is_refused(line: str, tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", f"text,label\none,a\n{line}\n".encode())
    assert f"{path}, line " in refusal(path)


def test_line_ends_of_an_old_macintosh_are_named_and_the_way_out_works(tmp_path: Path) -> None:
    old = put(tmp_path, "old.csv", b"text,label\rone,a\r")
    message = refusal(old)
    command = re.search(r"tr \S+ \S+ < OLD > NEW", message)
    assert command is not None
    line = command[0].replace("OLD", str(old)).replace("NEW", str(tmp_path / "new.csv"))
    subprocess.run(["sh", "-c", line], check=True)
    assert load_examples(tmp_path / "new.csv") == [Example("one", "a")]


def test_a_nul_character_is_refused_with_its_line(tmp_path: Path) -> None:
    secret = SECRET.encode()
    table = put(tmp_path, "d.csv", b"text,label\n" + secret + b"\0,a\n")
    assert f"{table}, line 2: the text holds a NUL character" in refusal(table)
    lines = put(tmp_path, "d.jsonl", b'{"text": "' + secret + b'\0", "label": "a"}\n')
    assert f"{lines}, line 1: the text holds a NUL character" in refusal(lines)
    root = write(tmp_path, "folder", [Example(f"{SECRET}\0", "a")])
    assert "0000.txt: the text holds a NUL character" in refusal(root)


def test_a_nul_character_is_refused_however_the_format_writes_it(tmp_path: Path) -> None:
    text = f"{SECRET}\0"
    assert "line 1" in refusal(put(tmp_path, "d.jsonl", jsonl_bytes([Example(text, "a")])))
    assert "row 1" in refusal(write_parquet(tmp_path / "d.parquet", {"text": [text], "label": ["a"]}))


def test_half_a_surrogate_pair_is_refused_as_no_utf8_can_hold_it(tmp_path: Path) -> None:
    path = put(tmp_path, "d.jsonl", f'{{"text": "{SECRET} \\ud83d", "label": "a"}}\n'.encode())
    assert f"{path}, line 1" in refusal(path)


def test_a_file_of_another_kind_is_refused_with_what_can_be_read(tmp_path: Path) -> None:
    for name in ("d.txt", "d.xlsx", "d", "d.gz", "d.zip", "d.parquet.gz"):
        message = refusal(put(tmp_path, name, SECRET.encode()))
        assert "a file of another kind" in message
        assert ".jsonl" in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("absent.jsonl", "absent.csv", "absent.parquet", "absent"):
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name} does not exist")
    assert "$HOME" in refusal(Path("~/texts.jsonl"))


def test_a_file_that_only_claims_to_be_parquet_is_refused(tmp_path: Path) -> None:
    real = write_parquet(tmp_path / "real.parquet", {"text": [SECRET] * 50, "label": ["a"] * 50}).read_bytes()
    for number, data in enumerate((b"", SECRET.encode(), real[:-9], real[: len(real) // 2])):
        refusal(put(tmp_path, f"{number}.parquet", data))


def test_errors_of_unlabelled_reading_do_not_ask_for_labels(tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.jsonl", b'{"text": "one"}\n'), label_column=None) == [Example("one", None)]
    assert load_examples(put(tmp_path, "d.csv", b"text\none\n"), label_column=None) == [Example("one", None)]
