"""How long texts are in tokens: percentiles of a device's texts, and of all devices' texts by those.

A percentile is the shortest length that so many percent of the texts do not exceed (numpy's `inverted_cdf`).  Of each
device only four are known, so those of all devices together are bounds: at least so many percent are no longer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from schemas.profile import LENGTH_STEP, TextLengths
from stages.data.encode import Encoder
from stages.data.load import Example

ENCODED_AT_ONCE = 256  # texts: token ids of all of them may be large


def text_lengths(examples: Sequence[Example], encoder: Encoder) -> TextLengths | None:
    """Percentiles of a device's texts; None where it has none.  Raises `BadInput` where the template does not fit."""
    pooled = PooledLengths()
    for first in range(0, len(examples), ENCODED_AT_ONCE):
        encoded = encoder.encode_examples(examples[first : first + ENCODED_AT_ONCE])
        pooled.count(len(one.ids) for one in encoded)
    return pooled.percentiles(encoder.settings.most_tokens)


class PooledLengths:
    """Lengths of texts, pooled."""

    def __init__(self) -> None:
        self._parts: Counter[int] = Counter()  # by length: hundredths of texts, as the percentiles are

    def count(self, lengths: Iterable[int]) -> None:
        """Add texts of those lengths."""
        for length in lengths:
            self._parts[length] += 100

    def join(self, texts: int, lengths: TextLengths) -> None:
        """Add so many texts of which the percentiles are known: those between two of them count as the longer one."""
        below = 0
        for percentage, length in lengths.by_percentage().items():
            self._parts[length] += texts * (percentage - below)
            below = percentage

    def percentiles(self, read: int) -> TextLengths | None:
        """Percentiles of all of them, rounded up; None where there are none.  `read`: what texts were truncated at."""
        if not self._parts:
            return None
        median, p90, p99, longest = (self._at(percentage, read) for percentage in (50, 90, 99, 100))
        return TextLengths(read=read, median=median, p90=p90, p99=p99, longest=longest)

    def _at(self, percentage: int, read: int) -> int:
        wanted, found = percentage * self._parts.total(), 0
        for length in sorted(self._parts):
            found += 100 * self._parts[length]
            if found >= wanted:
                break
        return min(read, -(-length // LENGTH_STEP) * LENGTH_STEP)
