"""What each strategy asks of a tensor's holders: the papers' numbers, in a table."""

from typing import Any

import pytest

from schemas.errors import TooFewUpdates
from schemas.settings import FederationSettings
from stages.federated.assumptions import Assumptions, Support


def assumptions(count: int, strategy: Any, **settings: Any) -> Assumptions:
    return Assumptions(FederationSettings(strategy=strategy, **settings), count)


@pytest.mark.parametrize(
    ("strategy", "settings", "count", "malicious", "needed"),
    [
        ("weighted-mean", {"assumed_malicious": 3}, 5, 0, 1),
        ("krum", {}, 5, 0, 3),
        ("krum", {"assumed_malicious": 2}, 20, 2, 7),
        ("multi-krum", {"assumed_malicious": 1}, 20, 1, 5),
        ("coordinate-median", {}, 1, 0, 1),
        ("coordinate-median", {}, 2, 0, 1),
        ("coordinate-median", {}, 3, 1, 3),
        ("coordinate-median", {}, 20, 1, 3),
        ("coordinate-median", {"assumed_malicious": 4}, 20, 4, 9),
        ("coordinate-median", {"assumed_malicious": 1}, 2, 1, 3),
        ("trimmed-mean", {"trim_fraction": 0.2}, 20, 4, 9),
        ("trimmed-mean", {"trim_fraction": 0.2}, 4, 1, 3),
        ("trimmed-mean", {"trim_fraction": 0.2}, 1, 1, 3),
        ("trimmed-mean", {"trim_fraction": 0.0}, 20, 0, 1),
        ("trimmed-mean", {"trim_fraction": 0.0, "assumed_malicious": 2}, 20, 2, 5),
        ("trimmed-mean", {"trim_fraction": 0.2, "assumed_malicious": 2}, 5, 2, 5),
    ],
)
def test_malicious_devices_to_withstand_and_holders_needed(
    strategy: str, settings: dict[str, Any], count: int, malicious: int, needed: int
) -> None:
    found = assumptions(count, strategy, **settings)
    assert (found.malicious, found.needed) == (malicious, needed)
    assert found.support(needed).suffices
    assert found.support(needed - 1) == Support(0, suffices=False)


def test_what_so_many_holders_withstand() -> None:
    assert [assumptions(20, "coordinate-median").support(n).tolerates for n in (3, 4, 5, 20)] == [1, 1, 2, 9]
    assert [assumptions(20, "trimmed-mean").support(n).tolerates for n in (8, 9, 20)] == [0, 4, 4]
    assert [assumptions(20, "krum", assumed_malicious=3).support(n).tolerates for n in (8, 9, 20)] == [0, 3, 3]
    assert assumptions(20, "weighted-mean").support(20) == Support(0, suffices=True)


@pytest.mark.parametrize(
    ("strategy", "malicious", "says"),
    [
        ("weighted-mean", 0, "the weighted mean"),
        ("coordinate-median", 2, "the coordinate-wise median"),
        ("trimmed-mean", 2, "the trimmed mean"),
        ("krum", 2, "Krum"),
        ("multi-krum", 2, "Multi-Krum"),
    ],
)
def test_a_round_needs_one_tensor_with_enough(strategy: str, malicious: int, says: str) -> None:
    found = assumptions(5, strategy, assumed_malicious=2, trim_fraction=0.2)
    found.check([])
    found.check([0, found.needed])
    with pytest.raises(TooFewUpdates) as caught:
        found.check([0, found.needed - 1])
    assert caught.value.values == {"needed": found.needed, "found": found.needed - 1}
    assert caught.value.fact == f"{says} against {malicious} malicious devices needs {found.needed} updates"
