"""Small files of our own making in the layouts, with the columns, keys and quirks, that benchmarks are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_many(folder: Path) -> Path:
    """MMLU with enough questions for an accuracy that is not 0 or 1."""
    (folder / "test").mkdir(parents=True)
    for subject in ("algebra", "tides"):
        rows = [f"Is {number} {subject}?,{number},no,yes,x{number},{'ABCD'[number % 4]}\n" for number in range(12)]
        (folder / "test" / f"{subject}_test.csv").write_text("".join(rows))
    return folder


def save_mmlu(folder: Path) -> Path:
    for name in ("dev", "test"):
        (folder / name).mkdir(parents=True)
    dev = '"What is 1, plus 1?",1,2,3,4,B\nA quote: ""x""?,a,b,c,d,D\n' + "Why?,p,q,r,s,A\n" * 3
    for subject in ("high_school_tides", "algebra"):
        (folder / "dev" / f"{subject}_dev.csv").write_text(dev)
    (folder / "test" / "high_school_tides_test.csv").write_text('"When is\nhigh water?",noon,six,moon,never,C\n')
    (folder / "test" / "algebra_test.csv").write_text("2+2?,1,2,3,4,D\n3+3?,6,7,8,9,A\n")
    return folder


def save_crass(path: Path) -> Path:
    path.write_text(
        "\ufeffPCTID;BatchID;Premise;QCC;CorrectAnswer;Answer1;Answer2;PossibleAnswer3;\n"
        "1;1;A gull drops a shell.;What would have happened if it had kept it?;It would be whole.;It would burst.;"
        "The sea would dry.;Nothing.;\n"
        "2;1;The tide falls. ; What if it had not?;The sand would be wet.;The sand would be dry.;It would rain.;;\n",
        encoding="utf-8",
    )
    return path


def save_bbh(folder: Path, *, reasoning: bool) -> Path:
    (folder / "bbh").mkdir(parents=True)
    examples = [{"input": f"Turn {word}.\nOptions:\n- Yes\n- No", "target": "No"} for word in ("left", "right", "back")]
    (folder / "bbh" / "navigate.json").write_text(json.dumps({"canary": "keep out", "examples": examples}))
    if reasoning:
        (folder / "cot-prompts").mkdir()
        shots = "".join(
            f"\n\nQ: Turn {turn}.\nA: Let's think step by step.\nSo the answer is No." for turn in ("up", "down")
        )
        text = "keep out\n-----\nGiven instructions, say where one ends." + shots
        (folder / "cot-prompts" / "navigate.txt").write_text(text)
    return folder


def drop_answer(number: str = "", spans: tuple[str, ...] = (), day: str = "", year: str = "") -> dict[str, Any]:
    return {"number": number, "date": {"day": day, "month": "", "year": year}, "spans": list(spans)}


def save_drop(path: Path) -> Path:
    def pair(question: str, answer: Any, *validated: Any) -> dict[str, Any]:
        return {"question": question, "answer": answer, "query_id": "q", "validated_answers": list(validated)}

    first = [pair("How many?", drop_answer("3"), drop_answer("3"), drop_answer("4"), drop_answer())]
    second = [
        pair("Who?", drop_answer(spans=("gulls",))),
        pair("Which?", drop_answer(spans=("gulls", "terns"))),
        pair("When?", drop_answer(day="7", year="1921")),
    ]
    document = {
        "nfl_1": {"passage": "Three gulls.", "qa_pairs": first, "wiki_url": ""},
        "nfl_2": {"passage": " Gulls and terns. ", "qa_pairs": second, "wiki_url": ""},
    }
    path.write_text(json.dumps(document))
    return path
