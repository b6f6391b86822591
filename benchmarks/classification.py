"""A sentence encoder learns to sort BBC news on twenty devices: all layers, the exact chain, the paper's chain.

    python -m benchmarks.classification --out DIR [--seeds N]

MiniLM with the settings of `chainctl demo` (Dirichlet 1.0, five devices a round, one epoch of AdamW), twelve rounds,
one thread.  Accuracy on held-out texts by round, with the passes of a text through a layer and the bytes that the
devices count.  A run that was stopped is continued by the same command.  Writes benchmarks/results/classification.json
and prints a table.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown, save
from benchmarks.headlines import spread
from schemas.methods import ChainSettings, MethodSettings
from schemas.run import SimulationSummary
from stages import demo
from stages.assets import ASSETS, get_asset
from stages.data.split import holdout_file
from stages.federation import simulate
from stages.federation.prepare import Federation

ROUNDS = 12
ARMS: dict[str, MethodSettings] = {
    "all layers, true gradient": ChainSettings(),
    "exact chain, Q = 2, downwards": ChainSettings(start=0, window_size=2),
    "the paper's chain, Q = 2, T = 0.9": ChainSettings(foresight="adapters", window_size=2, cka_threshold=0.9),
}


def main() -> None:
    """Run every arm with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    model, data, results = get_asset(ASSETS["minilm"]), texts_of(options.out), list[dict[str, Any]]()
    for seed in range(options.seeds):
        for place, (name, chain) in enumerate(ARMS.items()):
            federation = federated(model, data, chain, seed=seed, rounds=ROUNDS)
            results.append(described(name, seed, simulate.run(federation, out=options.out / f"{place}-{seed}")))
            save("classification", results)
    print(markdown(COLUMNS, list(rows(results))))


def texts_of(out: Path) -> Path:
    """A folder with `train.jsonl` and `test.jsonl`, made once."""
    data = out / "data"
    if not data.exists():
        holdout_file(get_asset(ASSETS["bbc-news"]), data, fraction=0.2, seed=0, deduplicate=True)
    return data


def federated(model: Path, data: Path, chain: MethodSettings, *, seed: int, rounds: int) -> Federation:
    """The demo's federation, on one thread."""
    numerics = demo.SETTINGS.numerics.model_copy(update={"threads": 1})
    return Federation(
        model_dir=model,
        data=data / "train.jsonl",
        test=data / "test.jsonl",
        settings=demo.SETTINGS.model_copy(update={"chain": chain, "seed": seed, "numerics": numerics}),
        devices=demo.DEVICES,
        rounds=rounds,
        alpha=demo.ALPHA,
        memory_budgets=(demo.MEMORY_BUDGET_BYTES,),
    )


def described(name: str, seed: int, summary: SimulationSummary) -> dict[str, Any]:
    """What one run learned, by round, and what each round cost: passes per text, bytes a device sends."""
    return {
        "arm": name,
        "seed": seed,
        "rounds": [
            {
                "accuracy": line.accuracy,
                "passes": line.per_text,
                "bytes_up": line.bytes_up / line.devices,
                "seconds": line.seconds,
            }
            for line in summary.rounds
        ],
    }


COLUMNS = ("", "accuracy, 4 rounds", "8 rounds", "12 rounds", "after 40 passes", "passes a round", "KiB sent a round")


def rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """A row an arm: mean and range over seeds, in per cent."""
    for name in ARMS:
        runs = [one["rounds"] for one in results if one["arm"] == name]
        lines = [line for run in runs for line in run]
        yield (
            f"{name} ({len(runs)} seeds)",
            *(spread([100 * run[number - 1]["accuracy"] for run in runs]) for number in (4, 8, 12)),
            spread([100 * after_passes(run, 40.0) for run in runs]),
            f"{sum(line['passes'] for line in lines) / len(lines):.1f}",
            f"{sum(line['bytes_up'] for line in lines) / len(lines) / 2**10:.0f}",
        )


def after_passes(rounds: Sequence[dict[str, Any]], passes: float) -> float:
    """Accuracy of the round that ends nearest to so many passes of each text, all rounds so far."""
    total, ends = 0.0, []
    for line in rounds:
        total += line["passes"]
        ends.append((abs(total - passes), line["accuracy"]))
    return float(min(ends)[1])


if __name__ == "__main__":
    main()
