"""Older versions: read by their upgrade, as closed and canonical as ever, under the name they always had.

Nothing has been released, so no document has an older version; a made-up one proves the way for the first that will.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import Manifest, Many, Record, Upgrade, added, canonical_json
from schemas.errors import BadInput

SECRET = "Patient-Nr-4711"


def from_v1(document: dict[str, Any]) -> dict[str, Any]:
    """v1 did not say which harbour."""
    return from_v2({**added(document, {"harbour": "unknown"}), "version": 2})


def from_v2(document: dict[str, Any]) -> dict[str, Any]:
    """v2 knew heights without their unit."""
    heights = [added(height, {"unit": "m"}) for height in document["heights"]]
    return {**document, "heights": heights, "version": 3}


class Height(Record):
    hour: int
    value: float
    unit: Literal["m", "ft"]


class TideTable(Manifest):
    KIND: ClassVar[str] = "tide-table"
    VERSION: ClassVar[int] = 3
    OLDER: ClassVar[Mapping[int, Upgrade]] = {1: from_v1, 2: from_v2}

    kind: Literal["tide-table"] = "tide-table"
    version: Literal[3] = 3
    harbour: str
    heights: Many[Height]


OLD: dict[int, dict[str, Any]] = {
    1: {"kind": "tide-table", "version": 1, "heights": [{"hour": 3, "value": 1.5}]},
    2: {"kind": "tide-table", "version": 2, "harbour": "Esbjerg", "heights": [{"hour": 3, "value": 1.5}]},
}
CURRENT = TideTable(harbour="Esbjerg", heights=(Height(hour=3, value=1.5, unit="m"),))

every_version = pytest.mark.parametrize("version", sorted(OLD))


def refuses(data: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        TideTable.from_bytes(data, source="manifest.json")
    assert SECRET not in str(caught.value)
    return caught.value


def test_an_older_document_is_read_as_one_of_today() -> None:
    assert TideTable.from_bytes(canonical_json(OLD[2]), source="old") == CURRENT
    assert TideTable.from_bytes(canonical_json(OLD[1]), source="old").harbour == "unknown"
    assert TideTable.from_bytes(CURRENT.canonical_bytes(), source="new") == CURRENT


@every_version
def test_an_older_document_is_as_closed_as_ever(version: int) -> None:
    for key in OLD[version]:
        refuses(canonical_json({name: value for name, value in OLD[version].items() if name != key}))
        if key != "kind":
            refuses(canonical_json({**OLD[version], key: [[SECRET]]}))
    refuses(canonical_json({**OLD[version], "surprise": SECRET}))
    refuses(canonical_json({**OLD[version], "heights": [{"hour": 3, "value": 1.5, "surprise": SECRET}]}))
    refuses(canonical_json({**OLD[version], "heights": {"hour": SECRET}}))


@every_version
def test_an_older_document_that_holds_what_only_newer_ones_do_is_refused(version: int) -> None:
    newer: dict[int, dict[str, Any]] = {
        1: {"harbour": "Esbjerg"},
        2: {"heights": [{"hour": 3, "value": 1.5, "unit": "ft"}]},
    }
    refuses(canonical_json({**OLD[version], **newer[version]}))


@every_version
def test_an_older_document_is_as_canonical_as_ever(version: int) -> None:
    data = canonical_json(OLD[version])
    for other in (data + b"\n", data.replace(b"  ", b" "), data[:-1], data.replace(b"1.5", b"1.50")):
        refuses(other)
    assert "canonical" in refuses(json.dumps(OLD[version]).encode()).fact
    for length in range(len(data)):
        refuses(data[:length])


def test_a_version_that_nobody_upgrades_is_refused_and_a_newer_one_says_upgrade() -> None:
    assert "upgrade" not in refuses(canonical_json({**OLD[1], "version": 0})).hint
    assert "upgrade" in refuses(canonical_json({**OLD[1], "version": 4})).hint
    assert "upgrade" not in refuses(canonical_json({**OLD[1], "version": True})).hint  # True == 1


@given(
    harbour=st.text(max_size=5),
    heights=st.lists(st.tuples(st.integers(0, 24), st.floats(allow_nan=False, allow_infinity=False)), max_size=4),
)
def test_whatever_an_older_document_says_is_kept(harbour: str, heights: list[tuple[int, float]]) -> None:
    old = {
        "kind": "tide-table",
        "version": 2,
        "harbour": harbour,
        "heights": [{"hour": hour, "value": value} for hour, value in heights],
    }
    try:
        data = canonical_json(old)
    except UnicodeEncodeError:
        return  # a lone surrogate is not a text
    table = TideTable.from_bytes(data, source="old")
    assert table.harbour == harbour
    assert [(one.hour, one.value, one.unit) for one in table.heights] == [(*height, "m") for height in heights]
