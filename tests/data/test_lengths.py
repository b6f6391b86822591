"""Percentiles of lengths: numpy's of one device, and bounds of all devices' from those."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.profile import LENGTH_STEP, TextLengths
from stages.data.lengths import PooledLengths

READ = 60
DEVICE = st.lists(st.integers(1, READ), min_size=1, max_size=30)


def percentiles(lengths: list[int]) -> TextLengths:
    pooled = PooledLengths()
    pooled.count(lengths)
    found = pooled.percentiles(READ)
    assert found is not None
    return found


def joined(devices: list[list[int]]) -> TextLengths:
    pooled = PooledLengths()
    for lengths in devices:
        pooled.join(len(lengths), percentiles(lengths))
    found = pooled.percentiles(READ)
    assert found is not None
    return found


@fast(max_examples=100)
@given(DEVICE)
def test_percentiles_are_numpys_rounded_up(lengths: list[int]) -> None:
    for percentage, found in percentiles(lengths).by_percentage().items():
        exact = int(np.percentile(lengths, percentage, method="inverted_cdf"))
        assert found == min(READ, -(-exact // LENGTH_STEP) * LENGTH_STEP)


@fast(max_examples=100)
@given(st.lists(DEVICE, min_size=1, max_size=6))
def test_at_least_so_many_percent_of_all_devices_texts_are_no_longer(devices: list[list[int]]) -> None:
    everything = np.array([length for lengths in devices for length in lengths])
    found = joined(devices)
    for percentage, length in found.by_percentage().items():
        assert 100 * np.count_nonzero(everything <= length) >= percentage * len(everything)
    assert found.longest == percentiles(everything.tolist()).longest
    assert joined(devices[::-1]) == found


@given(DEVICE)
def test_of_one_device_they_are_its_own(lengths: list[int]) -> None:
    assert joined([lengths]) == percentiles(lengths)


def test_devices_count_by_their_texts() -> None:
    assert joined([[8] * 99, [40]]).p99 == 8
    assert joined([[8] * 98, [40] * 2]).p99 == 40


def test_there_are_none_without_texts() -> None:
    assert PooledLengths().percentiles(READ) is None


@pytest.mark.parametrize("changed", [{"median": 24}, {"longest": 72}, {"p99": 0}])
def test_percentiles_that_contradict_each_other_are_refused(changed: dict[str, int]) -> None:
    whole = {"read": 64, "median": 8, "p90": 16, "p99": 16, "longest": 64}
    with pytest.raises(ValueError, match=r"percentile|greater than"):
        TextLengths.model_validate(whole | changed)
