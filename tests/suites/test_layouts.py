"""Benchmarks in the layout they are published in: what is asked, what counts as right, and what is refused.

The files here are small, of our own making, and have the columns, keys and quirks of the real ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from schemas.errors import BadInput
from stages.suites.questions import Choice, OpenQuestion, cut_at, questions_digest
from stages.suites.suite import BenchmarkName, read_questions
from tests.fleet.benchmark_files import save_bbh, save_crass, save_drop, save_mmlu

SECRET = "Patient-Nr-4711"


def choices(questions: list[Any]) -> list[Choice]:
    assert all(isinstance(question, Choice) for question in questions)
    return questions


def opens(questions: list[Any]) -> list[OpenQuestion]:
    assert all(isinstance(question, OpenQuestion) for question in questions)
    return questions


def test_mmlu_is_asked_by_the_published_prompt(tmp_path: Path) -> None:
    algebra, more, tides = choices(read_questions("mmlu", save_mmlu(tmp_path), shots=2))
    assert tides.prompt == (
        "The following are multiple choice questions (with answers) about high school tides.\n\n"
        "What is 1, plus 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        'A quote: ""x""?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\n'
        "When is\nhigh water?\nA. noon\nB. six\nC. moon\nD. never\nAnswer:"
    )
    assert (tides.choices, tides.answer_index, tides.group) == ((" A", " B", " C", " D"), 2, "high_school_tides")
    assert [(one.group, one.answer_index) for one in (algebra, more)] == [("algebra", 3), ("algebra", 0)]


def test_mmlu_has_five_shots_unless_told_otherwise_and_needs_none(tmp_path: Path) -> None:
    save_mmlu(tmp_path)
    assert read_questions("mmlu", tmp_path) == read_questions("mmlu", tmp_path, shots=5)
    (tmp_path / "dev" / "algebra_dev.csv").unlink()
    assert len(read_questions("mmlu", tmp_path, shots=0)) == 3
    with pytest.raises(BadInput, match=r"algebra_dev\.csv cannot be read"):
        read_questions("mmlu", tmp_path, shots=1)


def test_a_limit_is_of_each_group(tmp_path: Path) -> None:
    assert [one.group for one in read_questions("mmlu", save_mmlu(tmp_path), limit=1)] == [
        "algebra",
        "high_school_tides",
    ]


def test_crass_hides_the_first_answer_among_the_others(tmp_path: Path) -> None:
    first, second = choices(read_questions("crass", save_crass(tmp_path / "CRASS_FTM_main_data_set.csv")))
    assert second.prompt.startswith("The tide falls. What if it had not?\nA. ")
    assert (len(first.choices), len(second.choices)) == (4, 3)
    lines = first.prompt.split("\n")[1:5]
    answers = {line[3:] for line in lines}
    assert answers == {"It would be whole.", "It would burst.", "The sea would dry.", "Nothing."}
    assert lines[first.answer_index] == f"{'ABCD'[first.answer_index]}. It would be whole."
    assert read_questions("crass", tmp_path) == [first, second]  # the folder does as well


def test_the_right_answer_of_crass_is_as_often_at_each_letter(tmp_path: Path) -> None:
    header, row, *_ = save_crass(tmp_path / "one.csv").read_text("utf-8").splitlines()
    (tmp_path / "many.csv").write_text("\n".join([header, *[row] * 400]), "utf-8")
    places = [one.answer_index for one in choices(read_questions("crass", tmp_path / "many.csv"))]
    assert all(70 <= places.count(place) <= 130 for place in range(4))


def test_shots_of_crass_do_not_count(tmp_path: Path) -> None:
    path = save_crass(tmp_path / "crass.csv")
    (asked,) = choices(read_questions("crass", path, shots=1))
    first, second = choices(read_questions("crass", path))
    assert asked.prompt == f"{first.prompt}{first.choices[first.answer_index]}\n\n{second.prompt}"


def test_bbh_reasons_first_where_it_is_shown_how(tmp_path: Path) -> None:
    questions = opens(read_questions("bbh", save_bbh(tmp_path, reasoning=True)))
    assert [one.references for one in questions] == [(("No",),)] * 3
    assert questions[0].prompt == (
        "Given instructions, say where one ends.\n\n"
        "Q: Turn up.\nA: Let's think step by step.\nSo the answer is No.\n\n"
        "Q: Turn down.\nA: Let's think step by step.\nSo the answer is No.\n\n"
        "Q: Turn left.\nOptions:\n- Yes\n- No\nA: Let's think step by step.\n"
    )
    (shown,) = {one.prompt.count("So the answer") for one in opens(read_questions("bbh", tmp_path, shots=1))}
    assert shown == 1
    with pytest.raises(BadInput, match="too few exemplars"):
        read_questions("bbh", tmp_path, shots=3)


def test_bbh_without_reasoning_shows_its_first_examples(tmp_path: Path) -> None:
    save_bbh(tmp_path, reasoning=False)
    assert opens(read_questions("bbh", tmp_path))[0].prompt.startswith("Q: Turn left.")
    (asked,) = opens(read_questions("bbh", tmp_path, shots=2))
    left, right, back = (f"Q: Turn {word}.\nOptions:\n- Yes\n- No\nA:" for word in ("left", "right", "back"))
    assert asked.prompt == f"{left} No\n\n{right} No\n\n{back}"


def test_drop_takes_every_validated_answer_and_knows_four_kinds(tmp_path: Path) -> None:
    many, who, which, when = opens(read_questions("drop", save_drop(tmp_path / "drop_dataset_dev.json")))
    assert many.prompt == "Three gulls. How many?\nAnswer:"
    assert many.references == (("3",), ("4",))  # without the one that is blank
    assert (who.references, which.references) == ((("gulls",),), (("gulls", "terns"),))
    assert when.references == (("7  1921",),)
    assert [one.group for one in (many, who, which, when)] == ["number", "span", "spans", "date"]
    assert opens(read_questions("drop", tmp_path, shots=1))[0].prompt == (
        "Three gulls. How many?\nAnswer: 3\n\nGulls and terns. Who?\nAnswer:"
    )


def test_rouge_reads_instructions_and_plain_prompts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    rows = [
        {"instruction": "Shorten.", "input": "", "output": "Done."},
        {"instruction": "Shorten.", "input": "A {text}.", "output": "Done."},
        {"prompt": "Say it.", "reference": "It."},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    bare, given, plain = opens(read_questions("rouge", path))
    (tmp_path / "own.json").write_text(json.dumps(rows, indent=4))
    assert opens(read_questions("rouge", tmp_path / "own.json")) == [bare, given, plain]
    assert bare.prompt.endswith("### Instruction:\nShorten.\n\n### Response:\n")
    assert given.prompt.endswith("### Instruction:\nShorten.\n\n### Input:\nA {text}.\n\n### Response:\n")
    assert (plain.prompt, plain.references) == ("Say it.", (("It.",),))


def broken_mmlu(folder: Path, line: str) -> Path:
    (save_mmlu(folder) / "test" / "algebra_test.csv").write_text(f"2+2?,1,2,3,4,D\n{line}\n")
    return folder


def broken_crass(folder: Path, line: str) -> Path:
    header = save_crass(folder / "c.csv").read_text("utf-8").splitlines()[0]
    (folder / "c.csv").write_text(f"{header}\n{line}\n", "utf-8")
    return folder / "c.csv"


def broken_lines(folder: Path, line: str) -> Path:
    (folder / "own.jsonl").write_text(f'{{"prompt": "a", "reference": "b"}}\n{line}\n')
    return folder / "own.jsonl"


def broken_bbh(folder: Path, document: str) -> Path:
    (save_bbh(folder, reasoning=False) / "bbh" / "navigate.json").write_text(document)
    return folder


def broken_drop(folder: Path, document: str) -> Path:
    (folder / "d.json").write_text(document)
    return folder / "d.json"


@pytest.mark.parametrize(
    ("name", "make", "content", "says"),
    [
        ("mmlu", broken_mmlu, f"{SECRET},1,2,3,D", "line 2: wrong number of fields"),
        ("mmlu", broken_mmlu, f"a,1,2,3,4,{SECRET}", "line 2: the answer is not the letter"),
        ("mmlu", broken_mmlu, f'"{SECRET}" x,1,2,3,4,D', "line 2: not CSV"),
        ("mmlu", broken_mmlu, f"{SECRET}\0,1,2,3,4,D", "a NUL character"),
        ("crass", broken_crass, f"1;1;{SECRET};b", "line 2: wrong number of fields"),
        ("crass", broken_crass, f"1;1;{SECRET};b;;c;d;;", "line 2: an answer is empty"),
        ("bbh", broken_bbh, SECRET, "is not JSON"),
        ("bbh", broken_bbh, json.dumps([SECRET]), "not a JSON object"),
        ("bbh", broken_bbh, json.dumps({"examples": []}), "holds no examples"),
        ("bbh", broken_bbh, json.dumps({"examples": [{"input": SECRET}]}), "example 1: the value is not a text"),
        ("bbh", broken_bbh, json.dumps({"examples": [{"input": SECRET, "target": "\ud800"}]}), "surrogate"),
        ("drop", broken_drop, json.dumps({SECRET: {"passage": 1}}), "passage 1: the value is not a text"),
        ("drop", broken_drop, json.dumps({SECRET: {"passage": SECRET, "qa_pairs": {}}}), "not a list"),
        ("drop", broken_drop, json.dumps({SECRET: {"passage": SECRET, "qa_pairs": [{}]}}), "question 1: not a JSON"),
        ("rouge", broken_lines, SECRET, "line 2: not a JSON object"),
        ("rouge", broken_lines, json.dumps({"prompt": SECRET}), "line 2: the value is not a text"),
        ("rouge", broken_lines, json.dumps({"instruction": SECRET, "input": 3, "output": ""}), "line 2: the value"),
    ],
    ids=lambda value: value if value in get_args(BenchmarkName) else "",  # a NUL is no part of a test's name
)
def test_what_is_broken_is_named_by_its_place_and_never_repeated(
    name: Any, make: Callable[[Path, str], Path], content: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        read_questions(name, make(tmp_path, content))
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["mmlu", "crass", "bbh", "drop", "rouge"])
def test_what_is_not_there_is_refused(name: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput):
            read_questions(name, path)


@pytest.mark.parametrize(("shots", "limit"), [(-1, None), (6, None), (None, 0), (None, -3)])
def test_shots_and_limits_that_make_no_sense_are_refused(shots: int | None, limit: int | None, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        read_questions("mmlu", save_mmlu(tmp_path), shots=shots, limit=limit)


def test_a_digest_covers_prompts_answers_and_stops(tmp_path: Path) -> None:
    path = save_crass(tmp_path / "crass.csv")
    asked = read_questions("crass", path)
    digests = {questions_digest("crass", asked), questions_digest("mmlu", asked), questions_digest("crass", asked[:1])}
    one = OpenQuestion("p", (("r",),), "g", ("s",))
    others = [OpenQuestion("p", (("r",), ("t",)), "g", ("s",)), OpenQuestion("p", (("r",),), "g", ("s",), 9)]
    digests |= {questions_digest("x", [question]) for question in (one, *others)}
    assert len(digests) == 6


def test_no_question_prints_its_text() -> None:
    for question in (Choice(SECRET, (SECRET,), 0, "g"), OpenQuestion(SECRET, ((SECRET,),), "g", ())):
        assert SECRET not in repr(question)


def test_an_answer_ends_before_its_first_stop() -> None:
    assert cut_at("one\n\nQ: two", ("Q:", "\n\n")) == "one"
    assert cut_at("one", ("Q:",)) == "one"
    assert cut_at("one", ()) == "one"
