"""Scores against the reference implementations: lm-evaluation-harness' DROP (golden values), google's rouge_score."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from stages.intervals import macro_mean_with_interval, mean_with_interval, share_with_interval
from stages.suites.drop_scores import best_alignment, drop_pair, drop_scores, normalise
from stages.suites.questions import Choice, OpenQuestion
from stages.suites.scores import concluded, exact_match, longest_common_subsequence, rouge_l, rouge_words
from stages.suites.suite import Marked, mark_answer, mark_choice, summarise

GOLDEN = json.loads(Path(__file__).with_name("drop_golden.json").read_text("utf-8"))["cases"]
words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9)


def test_drop_scores_are_those_of_the_official_script() -> None:
    assert len(GOLDEN) == 500
    assert sum(0 < f1 < 1 for _, _, _, f1 in GOLDEN) > 100
    for answer, reference, em, f1 in GOLDEN:
        assert drop_pair(tuple(answer), tuple(reference)) == (em, f1), (answer, reference)


def test_the_best_reference_counts() -> None:
    assert drop_scores("the 3.0 bears", [("four",), ("3 bears",)]) == (1.0, 1.0)
    assert drop_scores("3 yards", [("3", "4")]) == (0.0, 0.33)
    assert drop_scores("anything", []) == (0.0, 0.0)


def test_normalising_twice_changes_nothing_where_no_hyphen_is_left() -> None:
    assert normalise("The 1,200-yard  Field Goal!") == "1200.0 yard field goal"
    assert normalise(normalise("The 1,200-yard  Field Goal!")) == "1200.0 yard field goal"


@fast(max_examples=150, deadline=None)
@given(
    gains=st.integers(1, 4).flatmap(
        lambda columns: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.67, 1.0]), min_size=columns, max_size=columns),
            min_size=1,
            max_size=4,
        )
    )
)
def test_an_alignment_is_the_best_of_all_permutations(gains: list[list[float]]) -> None:
    rows, columns = len(gains), len(gains[0])
    padded = [[*row, *[0.0] * (max(rows, columns) - columns)] for row in gains]
    padded += [[0.0] * max(rows, columns)] * (max(rows, columns) - rows)
    best = max(sum(row[place] for row, place in zip(padded, order, strict=True)) for order in orders(len(padded)))
    assert sum(best_alignment(gains)) == pytest.approx(best, abs=1e-12)
    assert len(best_alignment(gains)) == rows


def orders(count: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(count)))


@pytest.mark.parametrize(
    ("text", "target", "score"),
    [
        ("Turn left. So the answer is No.", "No", 1.0),
        ("So the answer is (B).\nthe answer is (C).", "(B)", 1.0),
        (" no", "No", 1.0),
        ("No.", "No", 1.0),
        ("Yes", "No", 0.0),
        ("The answer: No", "No", 0.0),
        ("the answer is a, b c.", "a b c", 1.0),
        ("", "No", 0.0),
    ],
)
def test_exact_match_is_of_the_conclusion(text: str, target: str, score: float) -> None:
    assert exact_match(text, ((target,),)) == score


@fast(max_examples=100, deadline=None)
@given(
    before=st.text("ab \n", max_size=9), said=st.text("ab c", min_size=1, max_size=9), after=st.text("x\n", max_size=5)
)
def test_a_conclusion_is_what_the_harness_filters_out(before: str, said: str, after: str) -> None:
    """Its regular expression, where the line ends with a full stop (elsewhere it takes a letter away)."""
    text = f"{before}the answer is {said}.\n{after}"
    found = re.findall("(?<=the answer is )(.*)(?=.)", text)
    assert concluded(text) == found[0].strip()


def test_rouge_l_is_googles() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    draw = np.random.default_rng(0)
    alphabet = ["tide", "Sand,", "sand", "12", "1.2", "naïve", "grey-green", "\n", "A", "—", "x_y"]
    for _ in range(300):
        answer, reference = (" ".join(draw.choice(alphabet, draw.integers(0, 12))) for _ in range(2))
        expected = scorer.score(reference, answer)["rougeL"].fmeasure
        assert rouge_l(answer, ((reference,),)) == pytest.approx(expected, abs=1e-12), (answer, reference)


def test_rouge_takes_the_best_reference() -> None:
    assert rouge_l("grey sand", (("wet sand",), ("grey sand",))) == 1.0
    assert rouge_l("", (("wet",),)) == 0.0
    assert rouge_words("It's 3.5—naïve") == ["it", "s", "3", "5", "na", "ve"]


@fast(max_examples=150, deadline=None)
@given(left=words, right=words)
def test_a_common_subsequence_obeys_its_recurrence(left: list[str], right: list[str]) -> None:
    length = longest_common_subsequence(left, right)
    assert length == longest_common_subsequence(right, left) <= min(len(left), len(right))
    assert longest_common_subsequence(left, left) == len(left)
    assert longest_common_subsequence(["z", *left], ["z", *right]) == length + 1
    if left and right and left[-1] != right[-1]:
        assert length == max(longest_common_subsequence(left[:-1], right), longest_common_subsequence(left, right[:-1]))


@fast(max_examples=100, deadline=None)
@given(groups=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_an_interval_holds_its_value_and_stays_between_0_and_1(groups: list[list[float]]) -> None:
    arrays = [np.array(group) for group in groups]
    for estimate in (mean_with_interval(np.concatenate(arrays)), macro_mean_with_interval(arrays)):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert macro_mean_with_interval(arrays).value == pytest.approx(np.mean([group.mean() for group in arrays]))


def test_intervals_cover_what_they_promise() -> None:
    """Of 600 samples of 80 beta-distributed scores about 95 % have the mean in their interval."""
    draw = np.random.default_rng(1)
    held = sum(
        estimate.low <= 0.4 <= estimate.high
        for estimate in (mean_with_interval(draw.beta(2, 3, size=80)) for _ in range(600))
    )
    assert 0.92 <= held / 600 <= 0.975


def test_a_mean_of_zeros_and_ones_has_a_wilson_interval() -> None:
    assert mean_with_interval(np.array([0.0, 1.0, 1.0])) == share_with_interval(2, 3)


def test_strata_add_up_as_cochran_has_it() -> None:
    groups = [np.array([0.0, 0.5, 1.0, 0.3]), np.array([0.2, 0.4])]
    half = 1.959963984540054 * np.sqrt(groups[0].var(ddof=1) / 4 + groups[1].var(ddof=1) / 2) / 2
    found = macro_mean_with_interval(groups)
    assert found.high - found.value == pytest.approx(half)


def test_the_likeliest_choice_is_the_answer() -> None:
    question = Choice("q", (" A", " B", " C"), 1, "g")
    assert mark_choice(question, [-3.0, -1.0, -2.0]).scores == {"accuracy": 1.0}
    assert mark_choice(question, [-1.0, -1.0, -2.0]).scores == {"accuracy": 0.0}


def test_a_written_answer_is_read_up_to_its_stop() -> None:
    question = OpenQuestion("q", (("3",),), "number", ("\n",))
    assert mark_answer("drop", question, " 3.0\nAnd more").scores == {"exact-match": 1.0, "f1": 1.0}


def test_a_summary_counts_each_group() -> None:
    marked = [Marked(group, {"f1": score}) for group, score in (("b", 1.0), ("a", 0.5), ("b", 0.0), ("b", 0.5))]
    (score,) = summarise(marked)
    assert [(group.name, group.count, group.value) for group in score.groups] == [("a", 1, 0.5), ("b", 3, 0.5)]
    assert (score.overall.value, score.macro.value) == (0.5, 0.5)
