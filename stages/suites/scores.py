"""How well a written answer agrees with its references: exact match, and ROUGE-L.

Every score is in [0, 1]; of several references the best counts.
"""

import re
from collections.abc import Sequence

from stages.suites.questions import Spans

# How BIG-Bench Hard's chains of thought end (arXiv 2210.09261); lm-evaluation-harness looks for the same.
CONCLUSION = re.compile(r"the answer is (.*)")
# What lm-evaluation-harness ignores in its zero-shot BBH: a final full stop, commas, newlines, backslashes, quotes.
IGNORED_CHARACTERS = re.compile(r"\.$|,|\n|\\|\"")
WORDS = re.compile(r"[a-z0-9]+")


def concluded(text: str) -> str:
    """What follows the first "the answer is", to the end of the line and without its full stop; else the whole text.

    lm-evaluation-harness always removes the last character; where that is a full stop both agree.
    """
    found = CONCLUSION.search(text)
    return (found[1] if found else text).strip().removesuffix(".").strip()


def normalised(text: str) -> str:
    """`text` in lower case, trimmed, without `IGNORED_CHARACTERS`."""
    return IGNORED_CHARACTERS.sub("", text.strip()).strip().lower()


def exact_match(answer: str, references: Sequence[Spans]) -> float:
    """1 where the conclusion of `answer` is, normalised, one of the references (its spans joined), else 0."""
    found = normalised(concluded(answer))
    return float(any(found == normalised(" ".join(spans)) for spans in references))


def rouge_l(answer: str, references: Sequence[Spans]) -> float:
    """ROUGE-L (Lin 2004): F-measure of the longest common subsequence of words, as in google's rouge_score.

    Words are runs of a-z and 0-9 in lower case; nothing is stemmed.
    """
    words = rouge_words(answer)
    return max((_f_measure(words, rouge_words(" ".join(spans))) for spans in references), default=0.0)


def rouge_words(text: str) -> list[str]:
    """The words that ROUGE compares."""
    return WORDS.findall(text.lower())


def _f_measure(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_subsequence(answer, reference)
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence.  Keeps one row of the table: time |left| · |right|, memory |right|."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
