"""Memory over time of one train-window, phases marked, the prediction as a line: docs/memory-over-time.svg.

    python -m benchmarks.timeline [--models-dir DIR]

Roberta-large-sized random weights, batch 8 x 256, 16 texts, window of two in the middle; once with room for
everything and once with the smallest budget, each in a fresh process sampled from outside every 20 ms.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Run, markdown, random_model, run_arm, save, write_texts
from benchmarks.memory import SETTINGS, prepare, smallest_budget

THIN = 4  # every fourth sample is drawn
PICTURE = ROOT / "docs" / "memory-over-time.svg"
# The stage in a process of its own, telling when each phase begins by the clock that the sampler reads.
CHILD = """
import json, sys, time
from pathlib import Path
from stages.process.footprint import prepare_process
prepare_process()
from stages.session import Machine
from stages.train_window import run
began, phases = float(sys.argv[1]), []
def progress(phase, done, total):
    if not phases or phases[-1][1] != phase:
        phases.append((time.perf_counter() - began, phase))
values = dict(zip(sys.argv[3::2], sys.argv[4::2]))
artifact = run(
    machine=Machine(Path(values["--model"]), memory_budget_bytes=int(sys.argv[2])), plan=Path(values["--plan"]),
    state=Path(values["--state"]), data=Path(values["--data"]), device=values["--device"], out=Path(values["--out"]),
    progress=progress,
)
print(json.dumps({"phases": phases, "predicted": artifact.measured().predicted_peak_bytes / 2**20}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models-dir", type=Path)
    chosen = parser.parse_args()
    setting = SETTINGS["roberta-large"]
    with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as name:
        folder = Path(name)
        model = random_model(setting.like, chosen.models_dir or folder)
        data = write_texts(
            folder / "data.jsonl", count=setting.texts, length=setting.length, vocabulary=setting.vocabulary
        )
        window = prepare(setting, folder, model, data, "auto")
        smallest = int(smallest_budget(window, folder).removesuffix("MiB"))
        runs = []
        for title, budget in (("room for everything", 16 * 1024), (f"a budget of {smallest} MiB", smallest)):
            out = ["--out", str(folder / str(budget))]
            began = time.perf_counter()
            command = [sys.executable, "-c", CHILD, str(began), str(budget * 2**20), *map(str, window[1:]), *out]
            runs.append((title, run_arm(title, command, keep_samples=True)))
    save("timeline", [{"title": title, **run.row(), **run.answer} for title, run in runs])
    draw(runs)
    print(markdown(("", "peak, MiB", "predicted"), [(t, run.peak, round(run.answer["predicted"])) for t, run in runs]))


def draw(runs: list[tuple[str, Run]]) -> None:
    """Two panels that share their axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "chainctl"
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(10, 3.6), sharey=True, constrained_layout=True)
    for panel, (title, run) in zip(panels, runs, strict=True):
        panel_of(panel, title, run)
    panels[0].set_ylabel("resident memory, MiB")
    figure.savefig(PICTURE, metadata={"Date": None})


def panel_of(panel: Any, title: str, run: Run) -> None:
    """Anonymous and file-backed memory, the phases, the prediction."""
    shown = run.samples[::THIN]
    seconds, anonymous, files = ([sample[column] for sample in shown] for column in range(3))
    panel.stackplot(seconds, anonymous, files, labels=("own memory", "code, from files"), colors=("#4477aa", "#bbccee"))
    predicted = run.answer["predicted"]
    panel.axhline(predicted, color="#cc3311", linewidth=1.2, label=f"predicted peak, {predicted:.0f} MiB")
    names = {"layers": "prefix", "steps": "window"}
    for moment, phase in run.answer["phases"]:
        panel.axvline(moment, color="#555555", linewidth=0.8, linestyle="--")
        panel.text(moment, 8, f" {names.get(phase, phase)}", fontsize=8, color="#333333")
    panel.set_title(f"{title}: {run.peak} MiB", fontsize=10)
    panel.set_xlabel("seconds")
    panel.legend(fontsize=7, loc="lower right")
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
