"""What a strategy assumes of a round, held for each tensor over the updates that hold it.

A device may train a part of what was assigned, so a tensor can have fewer holders than the round has updates.  Honest
devices leave tensors out because they are short of memory; a malicious device leaves out what it likes.  All malicious
devices of a round may therefore be among the holders of any tensor, and their number [f] is that of the round,
whatever the number of holders [n]:

krum, multi-krum    f = assumed_malicious                                        n ≥ 2 f + 3 (Blanchard et al. 2017)
coordinate-median   f = assumed_malicious, at least 1 in a round of three        n ≥ 2 f + 1 (Yin et al. 2018)
trimmed-mean        f = what a round of K updates trims at each end              n ≥ 2 f + 1
weighted-mean       nothing is assumed, and nothing promised                     n ≥ 1

The trimmed mean's theorem asks for α ≤ β, where α is the share of malicious devices in the round; so f = ⌊β K⌋, not
⌊β n⌋: with four malicious among twenty, and β = 0.2, a tensor that ten hold loses four values at each end.  Where β is
above 0 at least one value is trimmed, since with ⌊β K⌋ = 0 it would be the plain mean.  A tensor with too few holders
keeps its values and its moments.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.errors import TooFewUpdates
from schemas.settings import FederationSettings, Strategy
from stages.federated.trimmed_mean import cut_count

NAMES: Mapping[Strategy, str] = {
    "weighted-mean": "the weighted mean",
    "coordinate-median": "the coordinate-wise median",
    "trimmed-mean": "the trimmed mean",
    "krum": "Krum",
    "multi-krum": "Multi-Krum",
}


@dataclass(frozen=True)
class Support:
    """What a tensor's holders allow: malicious ones among them that cannot turn it, and whether it is combined."""

    tolerates: int
    suffices: bool


@dataclass(frozen=True)
class Assumptions:
    """Of a strategy, in a round of `count` accepted updates."""

    settings: FederationSettings
    count: int

    @property
    def malicious(self) -> int:
        """[f], the malicious devices that every tensor has to withstand."""
        settings = self.settings
        if settings.strategy == "weighted-mean":
            return 0
        if settings.strategy == "coordinate-median":
            return max(settings.assumed_malicious, int(self.count >= 3))
        if settings.strategy == "trimmed-mean":
            trims = settings.trim_fraction > 0
            return max(cut_count(self.count, settings.trim_fraction), settings.assumed_malicious, int(trims))
        return settings.assumed_malicious

    @property
    def needed(self) -> int:
        """Holders that a tensor needs to be combined."""
        return 2 * self.malicious + (3 if self.settings.strategy in ("krum", "multi-krum") else 1)

    def support(self, holders: int) -> Support:
        """What so many holders of a tensor allow."""
        suffices = holders >= self.needed
        tolerates = self.malicious
        if self.settings.strategy == "coordinate-median":
            tolerates = (holders - 1) // 2
        return Support(tolerates if suffices else 0, suffices)

    def check(self, holders: Iterable[int]) -> None:
        """One tensor of those with so many holders can be combined, or there is none.  Raises `TooFewUpdates`."""
        check_enough(NAMES[self.settings.strategy], self.malicious, self.needed, max(holders, default=self.needed))


def check_enough(strategy: str, malicious: int, needed: int, found: int) -> None:
    """Raises `TooFewUpdates` if fewer updates were found than needed."""
    if found < needed:
        raise TooFewUpdates(
            f"{strategy} against {malicious} malicious devices needs {needed} updates",
            values={"needed": needed, "found": found},
            hint="wait for more updates, or plan with a smaller federation.assumed_malicious or trim_fraction",
        )
