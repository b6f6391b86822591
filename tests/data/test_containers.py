"""Everyday containers of records: lists of JSON, other delimiters, compression; each reads as its lines would."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadInput
from schemas.settings import PromptSettings
from stages.data.json_list import json_list
from stages.data.load import Example, column_names, load_examples
from stages.data.readers import read_csv, read_json
from stages.data.records import Columns

SECRET = "xyzzy-Quetzalcoatl-4711"
BOM = b"\xef\xbb\xbf"
RECORDS = [
    {"text": 'a comma, a semicolon; a tab\t, a "quote"', "label": "cold"},
    {"text": "two\nlines [1, {2}]", "label": "warm"},
    {"text": "grüße, 你好, 🙂", "label": "warm"},
]
EXAMPLES = [Example(record["text"], record["label"]) for record in RECORDS]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
WANTED = Columns(("text", "label"))


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def table(delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting)
    writer.writerow(["text", "label"])
    writer.writerows(record.values() for record in RECORDS)
    return buffer.getvalue().encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return bytes(sink.getvalue().to_pybytes())


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_examples(path)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
@pytest.mark.parametrize("before", [b"", BOM, BOM + b" \r\n"])
def test_a_list_of_objects_is_read_whatever_the_files_name(
    name: str, indent: int | None, before: bytes, tmp_path: Path
) -> None:
    data = before + json.dumps(RECORDS, indent=indent).encode() + b"\n"
    assert load_examples(put(tmp_path, name, data)) == EXAMPLES


@pytest.mark.parametrize("before", [b"", BOM, b"\n\n"])
def test_json_lines_are_read_whatever_the_files_name(before: bytes, tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.json", before + LINES)) == EXAMPLES


def test_alpacas_own_file_is_read(tmp_path: Path) -> None:
    data = json.dumps([{"instruction": "say", "input": "", "output": "hello"}], indent=4).encode()
    found = load_examples(
        put(tmp_path, "alpaca_data.json", data), label_column=None, prompt=PromptSettings(format="alpaca")
    )
    assert found == [Example("", None, (("instruction", "say"), ("input", ""), ("output", "hello")))]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    items=st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=4),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 9),
)
def test_a_list_in_pieces_is_what_json_reads(items: list[dict[str, Any]], indent: int | None, size: int) -> None:
    text = json.dumps(items, indent=indent)
    pieces = (text[start : start + size] for start in range(0, len(text), size))
    found = list(json_list(pieces, "d.json", json.JSONDecoder()))
    assert [value for _, value in found] == items
    assert [where.split(",")[1] for where, _ in found] == [f" record {number}" for number in range(1, len(items) + 1)]


def test_records_of_a_list_are_read_before_the_rest_of_it() -> None:
    pulled = []

    def pieces() -> Iterator[str]:
        for number in range(100):
            pulled.append(number)
            yield "[{}" if number == 0 else ",{}"
        yield "]"

    records = json_list(pieces(), "d.json", json.JSONDecoder())
    next(records)
    assert len(pulled) < 3
    assert len(list(records)) == 99


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[\n {"text": "one", "label": "a"},\n {"text": "%s" "label": "a"}\n]', "record 2, line 3: not a JSON object"),
        ('[\n {"text": "one", "label": "a"},\n "%s"\n]', "record 2, line 3: not a JSON object"),
        ('[\n {"text": "one", "label": "a"},\n {"text": " ", "label": "a"}\n]', "record 2, line 3: the text is empty"),
        ('[\n {"text": "%s", "label": "a", "text": "b"}\n]', "record 1, line 2: not a JSON object"),
        ('[\n {"text": "%s", "label": "a"}\n', "line 3: the JSON list is not well formed"),
        ('[\n {"text": "%s", "label": "a"},\n]', "record 2, line 3: not a JSON object"),
        ('[\n {"text": "%s", "label": "a"}\n]\n{}', "line 4: the JSON list is not well formed"),
        ('[{"text": "%s", "label": "a"} {"text": "b", "label": "a"}]', "the JSON list is not well formed"),
        ("[" * 100_000, "record 1, line 1: not a JSON object"),
        ("[]", "holds no texts"),
        ('[\n{"text": "\0%s"}]', "line 2: the text holds a NUL character"),
        ('{\n "data": [{"text": "%s"}]\n}', "line 1: not a JSON object"),
        (
            '{"version": 1, "data": [{"text": "%s", "label": "a"}]}',
            "line 1: the records are in a list inside an object",
        ),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_its_place(text: str, says: str, tmp_path: Path) -> None:
    path = put(tmp_path, "d.json", text.replace("%s", SECRET).encode())
    message = refusal(path)
    assert str(path) in message
    assert says in message


def test_a_list_in_another_encoding_is_refused_with_line_and_byte(tmp_path: Path) -> None:
    data = f'[\n{{"text": "{SECRET}'.encode() + b'\xe9", "label": "a"}]'
    message = refusal(put(tmp_path, "d.json", data))
    assert "line 2: not UTF-8" in message
    assert f"at byte  {data.index(0xE9)}" in message


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_delimiter_is_the_one_by_which_the_wanted_columns_are_there(
    name: str, delimiter: str, quoting: int, tmp_path: Path
) -> None:
    assert load_examples(put(tmp_path, name, BOM + table(delimiter, quoting))) == EXAMPLES


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_other_columns_do_not_confuse_it(delimiter: str, tmp_path: Path) -> None:
    others = {",": "a;b;c;d", ";": "a,b,c,d", "\t": "a,b;c,d;e"}[delimiter]
    text = delimiter.join((others, "text", "label")) + "\n" + delimiter.join((others, "one", "x")) + "\n"
    assert load_examples(put(tmp_path, "d.csv", text.encode())) == [Example("one", "x")]


def test_one_column_is_a_table_of_the_usual_delimiter(tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.csv", b"text\na;b\n"), label_column=None) == [Example("a;b", None)]
    assert load_examples(put(tmp_path, "d.tsv", b"text\na, b\n"), label_column=None) == [Example("a, b", None)]
    with pytest.raises(BadInput, match="line 2: wrong number of fields"):
        load_examples(put(tmp_path, "e.csv", b"text\na, b\n"), label_column=None)


def test_the_line_in_which_excel_names_the_delimiter_is_read(tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.csv", b"sep=;\r\ntext;label\r\none;a\r\n")) == [Example("one", "a")]
    assert "line 4" in refusal(put(tmp_path, "e.csv", b"sep=;\ntext;label\none;a\ntwo\n"))


def test_blank_lines_before_the_names_of_columns_are_skipped(tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.csv", b"\n\ntext,label\none,a\n")) == [Example("one", "a")]
    assert "line 5" in refusal(put(tmp_path, "e.csv", b"\n\ntext,label\none,a\ntwo\n"))


def test_quotation_marks_that_would_join_two_lines_of_a_tsv_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "d.tsv", f'text\tlabel\n"Yes, {SECRET}.\ta\nI go."\tb\n'.encode())
    assert f"{path}, line 3: a field in quotation marks holds a tab and an end of line" in refusal(path)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_a_name_that_two_columns_have_is_refused(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, name, f"text;label;text\none;a;{SECRET}\n".encode())
    assert f"{path}, line 1: a column name appears twice" in refusal(path)


def test_columns_without_a_name_may_be_many(tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.csv", b"text,label,,\none,a,,\n")) == [Example("one", "a")]


def test_a_name_that_two_parquet_columns_have_is_refused(tmp_path: Path) -> None:
    from pyarrow import parquet

    columns = [pa.array(["one"]), pa.array([SECRET]), pa.array(["a"])]
    parquet.write_table(pa.table(columns, names=["text", "text", "label"]), tmp_path / "d.parquet")
    assert "a column name appears twice" in refusal(tmp_path / "d.parquet")


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.tsv"])
def test_compressed_files_are_read(name: str, pack: Any, tmp_path: Path) -> None:
    plain = {"d.jsonl": LINES, "d.json": json.dumps(RECORDS).encode(), "d.csv": table(","), "d.tsv": table("\t")}[name]
    ending = ".gz" if pack is gzip.compress else ".zst"
    packed = put(tmp_path, name + ending, pack(plain))
    assert load_examples(packed) == EXAMPLES
    assert column_names(packed) == ["text", "label"]
    assert load_examples(put(tmp_path, name, pack(plain))) == EXAMPLES  # the ending is lost, or was left
    assert load_examples(put(tmp_path, name + ending, plain)) == EXAMPLES


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_members_of_a_compressed_file_are_one_text(pack: Any, tmp_path: Path) -> None:
    assert load_examples(put(tmp_path, "d.jsonl.gz", pack(LINES) + pack(LINES))) == EXAMPLES * 2


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_errors_in_a_compressed_file_name_the_line(pack: Any, tmp_path: Path) -> None:
    path = put(tmp_path, "d.jsonl.gz", pack(LINES + f'{{"text": "{SECRET}"}}\n'.encode()))
    assert f"{path}, line 4: there is no column 'label'" in refusal(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_compressed_file_is_streamed_and_its_lost_end_is_refused(pack: Any, tmp_path: Path) -> None:
    many = "".join(json.dumps({"text": f"{number:x}" * 9, "label": "a"}) + "\n" for number in range(100_000)).encode()
    path = put(tmp_path, "d.jsonl.gz", pack(many)[:-9])
    records = read_json(path, WANTED)
    assert next(records).values == {"text": "0" * 9, "label": "a"}
    with pytest.raises(BadInput, match=r"d\.jsonl\.gz cannot be read"):
        list(records)


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(LINES * 100))
    packed[len(packed) // 2] ^= 0xFF
    assert "cannot be read" in refusal(put(tmp_path, "d.jsonl.gz", bytes(packed)))


@pytest.mark.parametrize("name", ["d.json", "d.json.gz", "d.csv.gz", "d.jsonl.zst"])
def test_no_file_is_held_as_a_whole(name: str, tmp_path: Path) -> None:
    text, count = "word " * 200, 20_000
    if "csv" in name:
        data = ("text,label\n" + f"{text},a\n" * count).encode()
    else:
        record = json.dumps({"text": text, "label": "a"})
        data = (f"{record}\n" * count if "jsonl" in name else f"[{','.join([record] * count)}]").encode()
    path = put(tmp_path, name, gzip.compress(data, 1) if "gz" in name else zstd(data) if "zst" in name else data)
    reader = read_csv if "csv" in name else read_json
    tracemalloc.start()
    found = sum(1 for _ in reader(path, WANTED))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == count
    assert peak < len(data) / 2


def test_a_csv_is_read_line_by_line(tmp_path: Path) -> None:
    path = put(tmp_path, "d.csv", b"text,label\none,a\n" + b"two,b\n" * 3 + b"broken\n")
    records = read_csv(path, WANTED)
    assert next(records).values == {"text": "one", "label": "a"}
    with pytest.raises(BadInput, match="line 6"):
        list(records)


@pytest.mark.parametrize(
    ("name", "refused", "says", "mended"),
    [
        ("d.json", '{\n"text": "a b",\n"label": "c"\n}\n', "one list", '[{\n"text": "a b",\n"label": "c"\n}]'),
        ("d.json", '{"v": 1, "data": [{"text": "a b", "label": "c"}]}', "alone", '[{"text": "a b", "label": "c"}]'),
        ("d.json", '[{"text": "a b", "label": "c"}', "no ] at its end", '[{"text": "a b", "label": "c"}]'),
        ("d.csv", "text;label\na;b;c\n", "a semicolon in quotation marks", 'text;label\n"a;b";c\n'),
        ("d.tsv", 'text\tlabel\n"a" b\tc\n', "those within it are doubled", 'text\tlabel\n"""a"" b"\tc\n'),
        ("d.tsv", 'text\tlabel\n"a\tc\nb"\td\n', "double those", 'text\tlabel\n"""a"\tc\n"b"""\td\n'),
        ("d.csv", "text,text,label\na b,a b,c\n", "rename or remove", "text,other,label\na b,a b,c\n"),
        ("d.csv", "text,label\na,1\nb,1.0\n", "a letter before them", "text,label\na,c1\nb,c1.0\n"),
        ("d.csv", "text,label\na b,c\nd,\n", "remove it", "text,label\na b,c\n"),
    ],
)
def test_what_a_refusal_proposes_works(name: str, refused: str, says: str, mended: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load_examples(put(tmp_path, name, refused.encode()))
    assert says in caught.value.hint
    assert load_examples(put(tmp_path, name, mended.encode()))
