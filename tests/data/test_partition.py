"""Splitting examples over devices: a true partition, the same on every machine, as skewed as asked.

The laws are checked by hypothesis, the skew by the mean share of a device's most frequent label.
"""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.errors import BadInput
from stages.data.load import Example
from stages.data.partition import device_names, drop_duplicates, holdout, partition

LABELS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=80)
ALPHAS = st.one_of(st.none(), st.sampled_from([1e-3, 1e6]), st.floats(1e-3, 1e6))
SEEDS = st.integers(0, 2**53 - 1)


def is_partition(shares: list[list[int]], count: int) -> bool:
    return sorted(index for share in shares for index in share) == list(range(count))


def purity(labels: list[str], shares: list[list[int]]) -> float:
    """Mean over devices of the share of its most frequent label."""
    tops = [max(Counter(labels[index] for index in share).values()) / len(share) for share in shares]
    return sum(tops) / len(tops)


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, devices=st.integers(1, 20), alpha=ALPHAS, seed=SEEDS)
def test_every_index_is_on_one_device_and_no_device_is_empty(
    labels: list[str], devices: int, alpha: float | None, seed: int
) -> None:
    assume(len(labels) >= devices)
    shares = partition(labels, devices=devices, alpha=alpha, seed=seed)
    assert len(shares) == devices
    assert is_partition(shares, len(labels))
    assert all(shares)
    assert all(share == sorted(share) for share in shares)
    assert shares == partition(labels, devices=devices, alpha=alpha, seed=seed)


@settings(max_examples=50, deadline=None)
@given(labels=LABELS, devices=st.integers(1, 120), alpha=ALPHAS, seed=SEEDS)
def test_devices_may_be_empty_where_that_is_allowed(
    labels: list[str], devices: int, alpha: float | None, seed: int
) -> None:
    shares = partition(labels, devices=devices, alpha=alpha, seed=seed, allow_empty=True)
    assert len(shares) == devices
    assert is_partition(shares, len(labels))
    assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize("alpha", [None, 1e-3, 1e6])
def test_ten_thousand_devices_are_fed_from_twelve_thousand_examples(alpha: float | None) -> None:
    labels = [f"label {index % 7}" for index in range(12_000)]
    shares = partition(labels, devices=10_000, alpha=alpha, seed=3)
    assert len(shares) == 10_000
    assert all(shares)
    assert is_partition(shares, 12_000)


@pytest.mark.parametrize("alpha", [None, 1e-3, 1.0, 1e6])
def test_as_many_devices_as_examples_have_one_each(alpha: float | None) -> None:
    assert [len(share) for share in partition(["a", "b"] * 25, devices=50, alpha=alpha, seed=0)] == [1] * 50


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 30), more=st.integers(1, 30), alpha=ALPHAS)
def test_fewer_examples_than_devices_are_refused_with_both_numbers(count: int, more: int, alpha: float | None) -> None:
    with pytest.raises(BadInput) as caught:
        partition(["a"] * count, devices=count + more, alpha=alpha, seed=0)
    assert caught.value.values == {"examples": count, "devices": count + more}


@pytest.mark.parametrize(("devices", "alpha"), [(0, None), (-1, 1.0), (2, 0.0), (2, -1.0), (2, float("nan"))])
def test_a_split_that_means_nothing_is_refused(devices: int, alpha: float | None) -> None:
    with pytest.raises(BadInput):
        partition(["a", "b", "c"], devices=devices, alpha=alpha, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_alpha_is_more_skewed(seed: int) -> None:
    labels = ["a", "b", "c", "d"] * 500
    pure, mixed, even = (
        purity(labels, partition(labels, devices=10, alpha=alpha, seed=seed)) for alpha in (1e-3, 1.0, 1e6)
    )
    assert pure > mixed > even
    assert pure > 0.9
    assert even < 0.27


@pytest.mark.parametrize("seed", range(5))
def test_a_tiny_alpha_gives_each_class_to_one_device(seed: int) -> None:
    labels = ["a", "b", "c", "d"] * 100
    shares = partition(labels, devices=10, alpha=1e-3, seed=seed, allow_empty=True)
    for label in "abcd":
        counts = [sum(labels[index] == label for index in share) for share in shares]
        assert max(counts) >= 95


@pytest.mark.parametrize("seed", range(5))
def test_a_huge_alpha_gives_each_device_an_even_part_of_each_class(seed: int) -> None:
    labels = ["a", "b", "c", "d"] * 500
    for share in partition(labels, devices=10, alpha=1e6, seed=seed):
        assert all(abs(count - 50) <= 2 for count in Counter(labels[index] for index in share).values())


def test_without_alpha_devices_differ_by_one_example_at_most() -> None:
    sizes = [len(share) for share in partition(["a", "b", "c"] * 33, devices=10, alpha=None, seed=1)]
    assert max(sizes) - min(sizes) <= 1


def test_alpha_of_one_draws_each_devices_share_of_a_class_evenly_on_average() -> None:
    """A symmetric Dirichlet has mean 1/k and, with alpha = 1 and k = 4, variance 3/80."""
    shares = [
        len(share) / 400 for seed in range(200) for share in partition(["a"] * 400, devices=4, alpha=1.0, seed=seed)
    ]
    first = shares[::4]
    mean = sum(first) / len(first)
    variance = sum((share - mean) ** 2 for share in first) / (len(first) - 1)
    assert abs(mean - 0.25) < 0.05
    assert abs(variance - 3 / 80) < 0.012


def test_another_seed_is_another_split() -> None:
    labels = ["a", "b"] * 50
    for alpha in (None, 1.0):
        splits = {str(partition(labels, devices=5, alpha=alpha, seed=seed)) for seed in range(10)}
        assert len(splits) == 10


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_a_holdout_is_disjoint_sorted_stratified_and_the_same_again(
    labels: list[str], fraction: float, seed: int
) -> None:
    train, test = holdout(labels, fraction=fraction, seed=seed)
    assert is_partition([train, test], len(labels))
    assert train == sorted(train)
    assert test == sorted(test)
    assert (train, test) == holdout(labels, fraction=fraction, seed=seed)
    held = Counter(labels[index] for index in test)
    for label, count in Counter(labels).items():
        if count > 1:
            assert held[label] >= 1
            assert abs(held[label] - fraction * count) <= 1
        else:
            assert held[label] == 0


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_a_holdout_leaves_every_class_something_to_train_on(labels: list[str], fraction: float, seed: int) -> None:
    train, _ = holdout(labels, fraction=fraction, seed=seed)
    assert {labels[index] for index in train} == set(labels)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_that_holds_out_nothing_or_all_is_refused(fraction: float) -> None:
    with pytest.raises(BadInput):
        holdout(["a", "b"], fraction=fraction, seed=0)


def test_drop_duplicates_keeps_the_first_of_each_text_in_its_place() -> None:
    examples = [Example("x", "1"), Example("y", "2"), Example("x", "3"), Example("z", "4"), Example("y", "5")]
    assert drop_duplicates(examples) == [examples[0], examples[1], examples[3]]


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from("vwxyz"), st.sampled_from("ab")), max_size=20))
def test_drop_duplicates_is_what_a_slow_loop_keeps(pairs: list[tuple[str, str]]) -> None:
    examples = [Example(text, label) for text, label in pairs]
    kept: list[Example] = []
    for example in examples:
        if all(example.text != other.text for other in kept):
            kept.append(example)
    assert drop_duplicates(examples) == kept


@pytest.mark.parametrize("count", [1, 2, 10, 99, 100, 101, 1000, 1001])
def test_device_names_are_distinct_and_sort_in_order(count: int) -> None:
    names = device_names(count)
    assert len(set(names)) == count
    assert names == sorted(names)
    assert names[0] == "device-" + "0" * max(2, len(str(count - 1)))
