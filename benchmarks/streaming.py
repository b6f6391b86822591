"""What streaming costs: a whole prefix with layers from disk against the same with every layer resident.

    python -m benchmarks.streaming [roberta-large tinyllama-1.1b] [--models-dir DIR] [--rounds 3]

One process, eight layers, arms interleaved: every layer resident, streamed with prefetch, streamed without, and
streamed with each layer hashed as it is read.  Four micro-batches of 8 x 256 (roberta-large, float32) and of 8 x 64
(tinyllama, bfloat16).  Files are in the page cache; a device with a slower disk sees more of it.  Prints ratios to the
resident prefix.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import markdown, random_model, save
from schemas.settings import Settings
from stages.model.backbone import Backbone
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.stream import load_layers, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED
from stages.weights.reader import Verify

SIZES = {"roberta-large": ("float32", 8, 256), "tinyllama-1.1b": ("bfloat16", 8, 64)}
MICRO_BATCHES = 4
LAYERS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(SIZES))
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as folder:
        for like in chosen.models:
            model = random_model(like, chosen.models_dir or Path(folder), layers=LAYERS)
            results[like] = compare(like, model, Path(folder), chosen.rounds)
            print(like, json.dumps(results[like]), flush=True)
    save("streaming", results)
    arms = list(next(iter(results.values())))
    rows = [(like, *(f"{found[arm]:.2f}" for arm in arms)) for like, found in results.items()]
    print(markdown(("", *arms), rows))


def compare(like: str, model: Path, scratch: Path, rounds: int) -> dict[str, float]:
    """Median over rounds of each arm's time over the resident time of its round."""
    import numpy as np

    dtype, rows, length = SIZES[like]
    settings = Settings.model_validate({"numerics": {"compute": dtype, "micro_batch": rows}, "head": {"form": "mean"}})
    first = Backbone.open(model, settings, pad_id=1)
    draw = np.random.Generator(np.random.PCG64(0))
    ids = draw.integers(4, 30000, (rows * MICRO_BATCHES, length))
    texts = EncodedTexts(tuple(ids), 1, "right", rows)
    resident = load_layers(first, range(first.num_layers))
    fingerprint = first.reader.fingerprint()

    def streamed(verify: Verify, *, prefetch: bool) -> Callable[[], None]:
        backbone = Backbone.open(model, settings, pad_id=1, expected=fingerprint, verify=verify)

        def run() -> None:
            with HiddenStates(texts.lengths, backbone.hidden_size, backbone.dtype, scratch=scratch) as hidden:
                run_prefix(backbone, texts, hidden, UNTUNED, stop=backbone.num_layers, prefetch=prefetch)

        return run

    @torch.no_grad()
    def run_resident() -> None:
        with HiddenStates(texts.lengths, first.hidden_size, first.dtype, scratch=scratch) as hidden:
            for indices in texts.chunks():
                hidden.scatter(indices, first.embed(texts.batch(indices)), texts.layout(indices))
            for layer in range(first.num_layers):
                for indices in texts.chunks():
                    arriving = hidden.gather(indices, texts.layout(indices))
                    output = first.run_layers({layer: resident[layer]}, arriving, texts.batch(indices), UNTUNED)
                    hidden.scatter(indices, output, texts.layout(indices))

    arms: dict[str, Callable[[], None]] = {
        "resident": run_resident,
        "streamed": streamed("never", prefetch=True),
        "streamed, no prefetch": streamed("never", prefetch=False),
        "streamed and verified": streamed("always", prefetch=True),
    }
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    run_resident()  # warm
    for _ in range(rounds):
        seconds = {name: timed(run) for name, run in arms.items()}
        for name in arms:
            ratios[name].append(seconds[name] / seconds["resident"])
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()}


def timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
