"""Peak memory and time of one train-window against what people run today.

    python benchmarks/memory.py [roberta-large tinyllama-1.1b llama-2-7b] [--method full-adapters] [--models-dir DIR]

Random weights of the named sizes, Q = 2 in the middle of the chain, AdamW; roberta-large in float32 with a classifier,
batch 8 x 256; the LLaMAs, stored in bfloat16, as language models, batch 4 x 512 (tinyllama) and 2 x 512 (7B).  Each
arm is a fresh process, the arms take turns, glibc's malloc is pinned in all (MALLOC_MMAP_THRESHOLD_ =
MALLOC_TRIM_THRESHOLD_ = 128 KiB, MALLOC_ARENA_MAX = 1) but where a row says otherwise.  Peak is VmHWM as the operating
system reports it; beside it the largest RssAnon sampled every 20 ms.  Writes benchmarks/results/memory-MODEL.json
and prints the tables of docs/performance.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Run, call, chainctl, markdown, random_model, run_arm, save, write_texts

PEERS = ("-m", "benchmarks.peers")


@dataclass(frozen=True)
class Setting:
    """What is trained on what."""

    like: str
    task: str
    batch: int
    length: int
    texts: int
    start: int
    vocabulary: int
    peers: tuple[str, ...]
    method: str = "chain"
    micro_batch: int = 1

    def recipe(self, compute: str) -> list[str]:
        """As `--set` flags."""
        task = ["task.kind='causal-lm'"] if self.task == "lm" else ["task.labels=['a','b']"]
        window = ["chain.foresight='adapters'", "chain.window_size=2", f"chain.start={self.start}"]
        chain = window if self.method == "chain" else [f"chain.method='{self.method}'"]
        settings = [
            *task,
            f"numerics.compute='{compute}'",
            f"encoding.max_length={self.length}",
            *chain,
            f"numerics.micro_batch={self.micro_batch}",
            f"optimizer.batch_size={self.batch}",
            "similarity.min_examples=5",
            "similarity.max_examples=5",
        ]
        return [part for setting in settings for part in ("--set", setting)]


SETTINGS = {
    setting.like: setting
    for setting in (
        Setting(
            "roberta-large",
            "classify",
            batch=8,
            length=256,
            texts=16,
            start=11,
            vocabulary=50265,
            peers=("full", "full-checkpoint", "lora", "lora-checkpoint", "disk-checkpoint"),
        ),
        Setting(
            "tinyllama-1.1b",
            "lm",
            batch=4,
            length=512,
            texts=8,
            start=10,
            vocabulary=32000,
            peers=("full", "full-checkpoint", "lora-checkpoint", "disk-checkpoint"),
        ),
        Setting(
            "llama-2-7b",
            "lm",
            batch=2,
            length=512,
            texts=4,
            start=15,
            vocabulary=32000,
            peers=("full", "full-checkpoint", "disk-checkpoint"),
        ),
    )
}
NAMES = {
    "full": "full adapters, resident",
    "full-checkpoint": "the same + gradient checkpointing",
    "lora": "LoRA (peft), resident",
    "lora-checkpoint": "LoRA + gradient checkpointing",
    "disk-checkpoint": "full adapters, accelerate disk offload + checkpointing",
}
UNPINNED = "full adapters, resident, malloc as it comes"
CHAIN, SMALLEST, CACHED = "chainctl train-window", "chainctl, smallest budget", "chainctl, prefix cached"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--models-dir", type=Path, help="where random models are kept; default: made and thrown away")
    parser.add_argument("--compute", default="auto", help="numerics.compute: float32, bfloat16 or auto")
    parser.add_argument("--method", default="chain", help="chain, or full-adapters")
    parser.add_argument("--micro-batch", type=int, default=1, help="texts that a layer computes at once")
    parser.add_argument("--without-peers", action="store_true", help="measure chainctl alone")
    parser.add_argument("--peers", nargs="+", choices=list(NAMES), help="measure chainctl and these alone")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as folder:
        for like in chosen.models:
            peers = () if chosen.without_peers else tuple(chosen.peers or SETTINGS[like].peers)
            models = chosen.models_dir or Path(folder)
            setting = replace(SETTINGS[like], method=chosen.method, micro_batch=chosen.micro_batch, peers=peers)
            compare(setting, Path(folder) / like, models, chosen.repeats, chosen.compute)


def compare(setting: Setting, folder: Path, models: Path, repeats: int, compute: str) -> None:
    """Every arm in turn, `repeats` times; the table."""
    model = random_model(setting.like, models)
    data = write_texts(folder / "data.jsonl", count=setting.texts, length=setting.length, vocabulary=setting.vocabulary)
    window = prepare(setting, folder, model, data, compute)
    smallest = smallest_budget(window, folder)
    sizes = ["--task", setting.task, "--texts", setting.texts, "--batch", setting.batch, "--length", setting.length]
    runs: list[Run] = []
    arms: list[tuple[str, list[Any]]] = [
        (CHAIN, ["--memory-budget", "16GiB"]),
        (SMALLEST, ["--memory-budget", smallest]),
    ]
    if setting.method == "chain":  # all other methods have no frozen layers whose output could be kept
        call(*window, "--out", folder / "warm", "--cache-dir", folder / "cache")
        arms.append((CACHED, ["--memory-budget", "16GiB", "--cache-dir", folder / "cache"]))
    for repeat in range(repeats):
        for name, flags in arms:
            out = folder / f"{name}-{repeat}"
            runs.append(run_arm(name, chainctl(*window, "--out", out, "--quiet", *flags)))
            measured = json.loads((out / "measured.json").read_bytes())
            steps = json.loads((out / "manifest.json").read_bytes())["steps"]
            runs[-1].answer = {
                "seconds_per_step": round(measured["seconds"] / steps, 2),
                "predicted_mib": measured["predicted_peak_bytes"] // 2**20,
            }
        for arm in setting.peers:
            command = [sys.executable, *PEERS, arm, "--model", str(model), *map(str, sizes)]
            runs.append(run_arm(NAMES[arm], command))
            if arm == "full" and setting.like != "llama-2-7b":  # which does not fit unpinned on a small machine
                runs.append(run_arm(UNPINNED, command, pinned=False))
    rows = [run.answer | run.row() for run in runs]
    name = f"memory-{setting.like}" + ("" if setting.method == "chain" else f"-{setting.method}")
    save(name, {"setting": setting.__dict__, "smallest_budget": smallest, "runs": rows})
    print(f"\n{setting.like}, batch {setting.batch} x {setting.length}\n\n{table(rows)}", flush=True)


def prepare(setting: Setting, folder: Path, model: Path, data: Path, compute: str) -> list[Any]:
    """Profile, plan and state 0; the arguments of the train-window that is measured."""
    base = ["--model", model]
    call("profile", *base, "--data", data, "--device", "bench", *setting.recipe(compute), "--out", folder / "profile")
    made = ["--out", folder / "plan", "--state", folder / "state"]
    call("plan", folder / "profile", *base, *setting.recipe(compute), *made)
    inputs = ["--plan", folder / "plan", "--state", folder / "state", "--data", data, "--device", "bench"]
    return ["train-window", *base, *inputs]


def smallest_budget(window: list[Any], folder: Path) -> str:
    """What a budget that is too small is told would do."""
    command = chainctl(*window, "--out", folder / "never", "--memory-budget", "1MiB", "--json")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    error = json.loads(refused.stdout)["error"]
    assert error["exit_code"] == 5, error
    found = re.fullmatch(r"(\d+) MiB", error["values"]["smallest budget that fits"])
    assert found, error
    return f"{found[1]}MiB"


def table(rows: list[dict[str, Any]]) -> str:
    """Worst peak and best time of each arm, and how much smaller the smallest chain is."""
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        kept = worst.setdefault(row["arm"], dict(row))
        for key, choose in (("peak_mib", max), ("anonymous_mib", max), ("seconds_per_step", min)):
            kept[key] = choose(kept[key], row[key])
    floor = worst[SMALLEST]["peak_mib"]
    cells = [
        (
            row["arm"],
            f"{row['peak_mib']:,}",
            f"{row['predicted_mib']:,}" if "predicted_mib" in row else "",
            f"{row['anonymous_mib']:,}",
            f"{row['seconds_per_step']:.1f}",
            f"{row['peak_mib'] / floor:.1f}x",
        )
        for row in worst.values()
    ]
    return markdown(
        ("arm", "peak, MiB", "predicted", "anonymous", "seconds per step", "against the smallest budget"), cells
    )


if __name__ == "__main__":
    main()
