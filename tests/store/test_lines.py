"""Files of lines: what is written is read back, what is altered is refused, and so is what a liar writes well."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.base import sha256_digest
from schemas.devices import LINE_LIMIT_BYTES, MOST_DEVICES, AcceptedUpdate, Participant, PlannedDevice
from schemas.errors import BadInput, NotTrusted
from schemas.refs import FileReference
from stages.process.measure import peak_bytes, reset_peak, resident_bytes
from stages.store import lines as store
from stages.store.lines import check_device_count, encode_lines, join_lines, read_lines
from tests import fleet

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True)
UPDATE = AcceptedUpdate(name="a", update=fleet.ZERO, example_count=3, train_loss=0.1)

fast_here = fast(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, data: bytes) -> FileReference:
    """A file with these bytes, and a reference that fits: what whoever makes an artifact can make."""
    (folder / "lines").write_bytes(data)
    return FileReference(name="lines", size_bytes=len(data), sha256=sha256_digest(data))


def planned(name: str) -> PlannedDevice:
    return PlannedDevice(
        name=name, profile=fleet.ZERO, example_count=3, max_example_count=3, memory_budget_bytes=2**30, key=None
    )


def test_the_longest_line_is_read(tmp_path: Path) -> None:
    longest = PlannedDevice(
        name="a" * 64,
        profile=fleet.ZERO,
        example_count=2**53,
        max_example_count=2**53,
        memory_budget_bytes=2**53,
        left_out='"' * 128,  # two bytes each, escaped
        key="ed25519:" + "0" * 64,
    )
    lines = encode_lines("lines", [longest])
    assert len(lines.data) == lines.reference.size_bytes < LINE_LIMIT_BYTES
    assert list(read_lines(tmp_path / "lines", write(tmp_path, lines.data), PlannedDevice)) == [longest]


def test_a_number_that_no_device_has_is_refused_before_it_is_written() -> None:
    line = planned("a").model_copy(update={"memory_budget_bytes": 10**900})
    with pytest.raises(BadInput, match="device a is too long") as caught:
        encode_lines("lines", [line])
    assert caught.value.values["at most"] == f"{LINE_LIMIT_BYTES} bytes"


@fast_here
@given(names=st.sets(NAMES, max_size=12))
def test_what_is_written_is_read_in_order(tmp_path: Path, names: set[str]) -> None:
    devices = [planned(name) for name in sorted(names)]
    lines = encode_lines("lines", devices)
    assert write(tmp_path, lines.data) == lines.reference
    assert lines.count == len(names) == lines.data.count(b"\n")
    assert list(read_lines(tmp_path / "lines", lines.reference, PlannedDevice)) == devices


def test_lines_out_of_order_are_a_callers_bug() -> None:
    for names in (("b", "a"), ("a", "a")):
        with pytest.raises(ValueError, match="out of order"):
            encode_lines("lines", map(planned, names))


def test_more_lines_than_anybody_reads_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_DEVICES", 3)
    encode_lines("lines", map(planned, "abc"))
    with pytest.raises(BadInput, match="too many devices") as caught:
        encode_lines("lines", map(planned, "abcd"))
    assert caught.value.values == {"at most": 3, "given": 4}
    assert caught.value.hint
    with pytest.raises(BadInput):
        check_device_count(4)


@fast_here
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_not_trusted(tmp_path: Path, position: float, bit: int) -> None:
    lines = encode_lines("lines", map(planned, "abc"))
    altered = bytearray(lines.data)
    altered[int(position * len(altered))] ^= 1 << bit
    write(tmp_path, bytes(altered))
    with pytest.raises(NotTrusted, match="altered"):
        list(read_lines(tmp_path / "lines", lines.reference, PlannedDevice))


def test_a_shorter_or_longer_file_is_not_trusted(tmp_path: Path) -> None:
    lines = encode_lines("lines", map(planned, "abc"))
    whole = lines.data
    others = [whole[:cut] for cut in range(0, len(whole), 11)] + [whole + b"\n", whole + planned("d").canonical_bytes()]
    for other in others:
        write(tmp_path, other)
        with pytest.raises(NotTrusted, match="altered or truncated"):
            list(read_lines(tmp_path / "lines", lines.reference, PlannedDevice))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    reference = write(tmp_path, planned("a").canonical_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "lines")
    with pytest.raises(BadInput, match="regular file"):
        list(read_lines(tmp_path / "link", reference, PlannedDevice))


LINE = UPDATE.canonical_bytes()
OTHERS = {
    "empty": b"\n",
    "not JSON": b"{\n",
    "no newline": LINE[:-1],
    "spaces": LINE.replace(b":", b": "),
    "another order of keys": json.dumps(UPDATE.model_dump(), separators=(",", ":")).encode() + b"\n",
    "an unknown field": LINE.replace(b"}", b',"zzz":1}'),
    "a missing field": LINE.replace(b'"example_count":3,', b""),
    "a key twice": LINE.replace(b'"example_count":3', b'"example_count":3,"example_count":3'),
    "another number format": LINE.replace(b"0.1", b"0.10"),
    "not finite": LINE.replace(b"0.1", b"NaN"),
    "a text for a number": LINE.replace(b"3", b'"3"'),
    "a name that is not one": LINE.replace(b'"a"', b'"../a"'),
    "too long": LINE.replace(b"0.1", b"0." + b"1" * LINE_LIMIT_BYTES),
    "a device twice": LINE + LINE,
    "out of order": LINE.replace(b'"a"', b'"b"') + LINE,
    "another kind of line": Participant(name="a").canonical_bytes(),
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS.keys())
def test_what_a_liar_writes_is_refused_though_its_hash_is_right(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_lines(tmp_path / "lines", write(tmp_path, data), AcceptedUpdate))
    assert str(caught.value).startswith(str(tmp_path / "lines"))
    assert caught.value.hint


def test_a_bomb_costs_nothing(tmp_path: Path) -> None:
    for data in (b"[" * 2**24, b"\n" * 2**22, b'{"name":"' + b"a" * 2**24, LINE * 2**16):
        reference = write(tmp_path, data)
        reset_peak()
        before = resident_bytes()
        with pytest.raises(BadInput):
            list(read_lines(tmp_path / "lines", reference, AcceptedUpdate))
        after = peak_bytes()
        assert before is not None
        assert after is not None
        assert after - before < 16 * 2**20


def test_a_file_that_no_federation_needs_is_not_even_opened(tmp_path: Path) -> None:
    reference = FileReference(name="lines", size_bytes=MOST_DEVICES * LINE_LIMIT_BYTES + 1, sha256=fleet.ZERO)
    with pytest.raises(BadInput, match="too large"):
        list(read_lines(tmp_path / "lines", reference, Participant))


def test_a_file_as_large_as_any_federation_needs_is_opened(tmp_path: Path) -> None:
    write(tmp_path, LINE)
    reference = FileReference(name="lines", size_bytes=MOST_DEVICES * LINE_LIMIT_BYTES, sha256=fleet.ZERO)
    with pytest.raises(NotTrusted, match="altered or truncated"):
        list(read_lines(tmp_path / "lines", reference, AcceptedUpdate))


def test_a_line_may_have_as_many_bytes_as_are_read_of_one() -> None:
    longest = b"x" * LINE_LIMIT_BYTES
    assert join_lines("lines", [("a", longest)]).data == longest
    with pytest.raises(BadInput, match="too long"):
        join_lines("lines", [("a", longest + b"x")])


@pytest.mark.parametrize(
    ("data", "expected", "found"),
    [
        (LINE[:-1] + b" " * (LINE_LIMIT_BYTES + 1 - len(LINE)) + b"\n", f"{LINE_LIMIT_BYTES} bytes at most", "more"),
        (LINE + LINE, "a device of a later name", "one that does not follow"),
        (LINE.replace(b":3", b": 3"), "its canonical form", "another spelling of it"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(data: bytes, expected: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"line [12] cannot be used") as caught:
        list(read_lines(tmp_path / "lines", write(tmp_path, data), AcceptedUpdate))
    assert caught.value.values == {"expected": expected, "found": found}


@pytest.mark.parametrize("begins", [LINE, b""], ids=["a line that fits", "no line"])
def test_of_a_file_that_has_grown_without_end_no_more_is_read_than_the_manifest_says(
    begins: bytes, tmp_path: Path
) -> None:
    reference = write(tmp_path, LINE)
    (tmp_path / "lines").write_bytes(begins)
    with (tmp_path / "lines").open("ab") as file:
        file.truncate(2**42)
    with pytest.raises(NotTrusted, match="altered or truncated"):
        list(read_lines(tmp_path / "lines", reference, AcceptedUpdate))
