"""What it costs to keep weights in bfloat16 and compute in float32.

    python -m benchmarks.arithmetic [--like tinyllama-1.1b] [--batch 4] [--length 512] [--repeats 5] [--threads 2]
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 python -m benchmarks.arithmetic   # as with AVX2 only

One training step of a resident window of two layers with the language head, forwards and backwards, adapters included:
weights stored in float32, in bfloat16 computing in float32, and in bfloat16 computing in bfloat16 (emulated where the
processor does not multiply it).  Arms take turns in one process; prints the medians and the ratio to float32.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import call, markdown, save
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from schemas.settings import Settings
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.process.arithmetic import gigaflops
from stages.streaming.stream import load_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import TokenCriterion
from stages.training.objective import Objective
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import BottleneckTuning

LAYERS = 3
WINDOW = Window(start=0, stop=2)
ARMS = {  # how weights are stored, and what computes
    "float32 in float32": ("float32", "float32"),
    "bfloat16 in float32": ("bfloat16", "float32"),
    "bfloat16 in bfloat16": ("bfloat16", "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--like", default="tinyllama-1.1b")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    speeds = {dtype: round(speed) for dtype, speed in gigaflops().items()}
    print("GFLOP/s of one thread", speeds, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in chosen.arms}
    with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as folder:
        steps = {name: step(Path(folder), chosen, *ARMS[name]) for name in chosen.arms}
        for _ in range(chosen.repeats):
            for name, take in steps.items():
                began = time.perf_counter()
                take()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    single = medians[chosen.arms[0]]
    rows = [(name, f"{median:.2f}", f"{median / single:.3f}") for name, median in medians.items()]
    print(markdown(("weights", "seconds per step", f"against {chosen.arms[0]}"), rows))
    save("arithmetic", {"gigaflops": speeds, "seconds": medians})


def step(folder: Path, chosen: argparse.Namespace, stored: str, compute: str) -> Callable[[], object]:
    """One step on a resident window, ready to be taken again and again."""
    path = folder / stored
    if not path.exists():
        call("model", "random", "--like", chosen.like, "--out", path, "--layers", LAYERS, "--dtype", stored)
    settings = Settings.model_validate(
        {
            "task": {"kind": "causal-lm"},
            "encoding": {"max_length": chosen.length},
            "numerics": {"compute": compute, "micro_batch": 1, "threads": chosen.threads},
        }
    )
    backbone = Backbone.open(path, settings, pad_id=0)
    width = backbone.hidden_size
    fresh = fresh_adapters(range(LAYERS), hidden_size=width, bottleneck=width // 16, seed=0)
    adapters = adapters_from_tensors(fresh, "silu")
    for layer in WINDOW.layers:
        for value in adapters[layer].parameters():
            value.requires_grad_()
    rows = [torch.randint(4, 1000, (chosen.length,)).numpy() for _ in range(chosen.batch)]
    texts = EncodedTexts(tuple(rows), 0, "right", 1)
    weights = load_layers(backbone, WINDOW.layers)
    criterion = TokenCriterion(LanguageHead.of(backbone, resident=True))
    objective = Objective(backbone, WINDOW, BottleneckTuning(adapters, {}), LossWeights(downstream=0.2), criterion)

    def take() -> None:
        for indices in texts.micro_batches(list(range(chosen.batch))):
            batch = texts.batch(indices)
            objective.accumulate(
                weights, backbone.embed(batch), batch, batch.input_ids.roll(-1, 1), count=chosen.batch * chosen.length
            )

    return take


if __name__ == "__main__":
    main()
