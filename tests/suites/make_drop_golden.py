"""How `drop_golden.json` was made: answers and references, scored by lm-evaluation-harness' own DROP.

    .venv-lm-eval/bin/python tests/suites/make_drop_golden.py      (made with lm-eval 0.4.13; `just lm-eval` has it)

Its `get_metrics` is the official script of AllenAI.
"""

import json
import random
from pathlib import Path

WORDS = [
    "the",
    "a",
    "an",
    "3",
    "3.0",
    "12",
    "1,200",
    "7-yard",
    "Bears",
    "bears.",
    "(Payton)",
    "U.S.",
    "-5",
    "1e3",
    "nan",
]
WORDS += ["field", "goal", "field-goal", "Théo", "second", "quarter", "inf", "½", "0.5"]
WORDS += ["'s", "—", "4%", "$20"]


def phrase(draw: random.Random) -> str:
    return draw.choice([" ", "  ", "-"]).join(draw.choice(WORDS) for _ in range(draw.randint(0, 5)))


def cases() -> list[tuple[list[str], list[str]]]:
    draw = random.Random(0)
    found = [([phrase(draw)], [phrase(draw) for _ in range(draw.randint(1, 3))]) for _ in range(250)]
    for _ in range(250):
        right = [phrase(draw) for _ in range(draw.randint(1, 7))]
        given = [span for span in right if draw.random() < 0.7] + [phrase(draw) for _ in range(draw.randint(0, 3))]
        draw.shuffle(given)
        found.append((given or [""], right))
    return found


def main() -> None:
    from lm_eval.tasks.drop.utils import get_metrics

    rows = []
    for given, right in cases():
        em, f1 = get_metrics(given, right)
        rows.append([given, right, float(em), float(f1)])
    path = Path(__file__).with_name("drop_golden.json")
    path.write_text(json.dumps({"lm-eval": "0.4.13", "cases": rows}, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
