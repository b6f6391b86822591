"""How the peak of train-window grows: with layers, window, length, batch and texts, one at a time.

    python -m benchmarks.growth [--models-dir DIR]

Bert-base-sized random weights, 12 layers, Q = 2, 128 tokens, batch 8, 32 texts unless said otherwise; each row is a
fresh process with malloc pinned, once with room for everything and once with the smallest budget that is accepted.
Writes benchmarks/results/growth.json and prints the table of docs/performance.md.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import call, chainctl, markdown, random_model, run_arm, save, write_texts
from benchmarks.memory import smallest_budget


@dataclass(frozen=True)
class Point:
    """One setting."""

    what: str = "as above"
    layers: int = 12
    window: int = 2
    length: int = 128
    batch: int = 8
    texts: int = 32

    def recipe(self) -> list[str]:
        """As `--set` flags.  The window is in the middle."""
        settings = [
            "task.labels=['a','b']",
            f"encoding.max_length={self.length}",
            "chain.foresight='adapters'",
            f"chain.window_size={self.window}",
            f"chain.start={(self.layers - self.window) // 2}",
            "numerics.micro_batch=1",
            f"optimizer.batch_size={self.batch}",
            "similarity.min_examples=5",
            "similarity.max_examples=5",
        ]
        return [part for setting in settings for part in ("--set", setting)]


BASE = Point()
POINTS = (
    BASE,
    *(replace(BASE, what=f"{layers} layers", layers=layers) for layers in (6, 48)),
    *(replace(BASE, what=f"Q = {window}", window=window) for window in (1, 8)),
    *(replace(BASE, what=f"{length} tokens", length=length) for length in (512,)),
    *(replace(BASE, what=f"batch {batch}", batch=batch) for batch in (32,)),
    *(replace(BASE, what=f"{texts} texts", texts=texts) for texts in (16, 128)),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models-dir", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as folder:
        for index, point in enumerate(POINTS):
            fast, small = measure(point, Path(folder) / str(index), chosen.models_dir or Path(folder))
            rows.append({"what": point.what, "fastest": fast, "smallest": small})
            print(rows[-1], flush=True)
    save("growth", rows)
    cells = [
        (row["what"], *(f"{row[key][name]:,}" for key in ("fastest", "smallest") for name in ("peak", "predicted")))
        for row in rows
    ]
    print(markdown(("", "fastest, MiB", "predicted", "smallest budget, MiB", "predicted"), cells))


def measure(point: Point, folder: Path, models: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Measured and predicted peaks in MiB, with room and without."""
    model = random_model("bert-base", models, layers=point.layers)
    data = write_texts(folder / "data.jsonl", count=point.texts, length=point.length, vocabulary=30522)
    base = ["--model", model]
    call("profile", *base, "--data", data, "--device", "bench", *point.recipe(), "--out", folder / "profile")
    made = ["--out", folder / "plan", "--state", folder / "state"]
    call("plan", folder / "profile", *base, *point.recipe(), *made)
    window = ["train-window", *base, "--plan", folder / "plan", "--state", folder / "state", "--data", data]
    window += ["--device", "bench"]
    found = []
    for name, budget in (("fast", "16GiB"), ("small", smallest_budget(window, folder))):
        out = folder / name
        run = run_arm(name, chainctl(*window, "--quiet", "--out", out, "--memory-budget", budget))
        predicted = json.loads((out / "measured.json").read_bytes())["predicted_peak_bytes"] // 2**20
        found.append({"peak": run.peak, "predicted": predicted})
    return found[0], found[1]


if __name__ == "__main__":
    main()
