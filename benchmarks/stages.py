"""What the light stages cost: the peak of `profile` over its imports, and `aggregate` beside reading the same bytes.

    python -m benchmarks.stages [--models-dir DIR]

profile: RoBERTa-large size (8 texts of 256 tokens), TinyLlama (4 x 512) and LLaMA-2-7B (2 x 512) with the smallest
budget that is accepted, in a fresh process; the baseline is what `benchmarks.imports` calls a model class.
aggregate: 2 and 16 updates of 67 MB in the page cache, every byte hashed on its way, against one thread that preads
and hashes them once.  Writes benchmarks/results/stages.json.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, chainctl, markdown, random_model, run_arm, save, write_texts
from benchmarks.memory import smallest_budget

SIZES = {"roberta-large": (8, 256, 50_000), "tinyllama-1.1b": (8, 512, 31_000), "llama-2-7b": (6, 512, 31_000)}
LAYER_MIB = {"roberta-large": 48.1, "tinyllama-1.1b": 84.0, "llama-2-7b": 386.0}  # float32; bfloat16; bfloat16
UPDATE_BYTES = 67_000_000
BASELINE = (
    "from stages.process.footprint import prepare_process; prepare_process(); from transformers import RobertaModel"
)
AGGREGATE = (
    "import sys, json, time; from pathlib import Path; from stages import aggregate\n"
    "from stages.process.measure import peak_bytes\n"
    "folder, count = Path(sys.argv[1]), int(sys.argv[2])\n"
    "updates = sorted(folder.glob('update-*'))[:count]\n"
    "before = peak_bytes(); began = time.perf_counter()\n"
    "out = folder / sys.argv[3] / 'next'\n"
    "aggregate.run(updates, plan=folder / 'plan', state=folder / 'state', out=out, force=True)\n"
    "print(json.dumps({'seconds': time.perf_counter() - began, 'extra_mib': (peak_bytes() - before) / 2**20}))\n"
)


def profiles(models: Path) -> list[list[object]]:
    """A row a size: peak over the baseline, and in layers."""
    rows: list[list[object]] = []
    baseline = run_arm("imports", [sys.executable, "-c", BASELINE]).peak
    for like, (count, length, vocabulary) in SIZES.items():
        model = random_model(like, models)
        with tempfile.TemporaryDirectory() as folder:
            texts = write_texts(Path(folder) / "texts.jsonl", count=count, length=length, vocabulary=vocabulary)
            settings = [f"encoding.max_length={length}", "numerics.micro_batch=1", "similarity.min_examples=5"]
            if like != "roberta-large":
                settings += ["task.kind='causal-lm'", "numerics.compute='bfloat16'"]
            flags = [part for setting in settings for part in ("--set", setting)]
            command = ["profile", "--model", model, "--data", texts, "--device", "a", *flags]
            budget = smallest_budget(command, Path(folder))
            run = run_arm(like, chainctl(*command, "--out", f"{folder}/p", "--memory-budget", budget, "--quiet"))
        over = run.peak - baseline
        rows.append([like, baseline, run.peak, over, f"{(over - 35) / LAYER_MIB[like]:.2f} layers + 35 MiB"])
    return rows


def aggregates() -> list[list[object]]:
    """A row a number of updates."""
    from tests import fleet

    rows: list[list[object]] = []
    names = tuple(f"d{index:02d}" for index in range(16))
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        width = UPDATE_BYTES // 4 // 2 // 9  # two layers of four tensors and a head, two rows each
        _, state = fleet.make_world(folder, width=width, devices=names)
        for seed, name in enumerate(names):
            fleet.make_update(folder / f"update-{name}", state, name, seed=seed)
        for count in (2, 16):
            files = sorted(folder.glob("update-*/tensors.safetensors"))[:count]
            plain, ours = [], []
            for repeat in range(3):
                plain.append(read_and_hash(files))
                command = [sys.executable, "-c", AGGREGATE, str(folder), str(count), f"{count}-{repeat}"]
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
                ours.append(json.loads(done.stdout))
            seconds = min(float(one["seconds"]) for one in ours)
            extra = max(float(one["extra_mib"]) for one in ours)
            size = sum(file.stat().st_size for file in files)
            rows.append([count, f"{size / seconds / 1e6:.0f}", f"{min(plain) / seconds:.2f}", f"{extra:.1f}"])
    return rows


def read_and_hash(files: list[Path]) -> float:
    """Seconds of one thread."""
    began = time.perf_counter()
    for file in files:
        descriptor, digest, offset = os.open(file, os.O_RDONLY), hashlib.sha256(), 0
        while chunk := os.pread(descriptor, 2**18, offset):
            digest.update(chunk)
            offset += len(chunk)
        os.close(descriptor)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models-dir", type=Path, default=Path("runs"))
    models = parser.parse_args().models_dir
    aggregated, profiled = aggregates(), profiles(models)
    save("stages", {"profile": profiled, "aggregate": aggregated})
    print(markdown(["profile", "imports, MiB", "peak", "over", "that is"], profiled), "\n")
    print(markdown(["updates", "MB/s", "against pread and SHA-256 once", "extra MiB"], aggregated))


if __name__ == "__main__":
    main()
