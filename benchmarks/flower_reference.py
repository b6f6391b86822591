"""What Flower's own strategies make of small updates: the oracle of tests/federated/.

    python -m venv DIR && DIR/bin/pip install flwr==1.41.0 && DIR/bin/python benchmarks/flower_reference.py

Needs an environment of its own: flwr and chainctl want different versions of typer.  Writes
tests/federated/flower_reference.json.  FedAdam's learning rate is divided by Flower's bias correction each round, so
that what is left is the paper's.
"""

import json
from pathlib import Path
from typing import Any

import flwr
import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as strategies

TARGET = Path(__file__).resolve().parent.parent / "tests" / "federated" / "flower_reference.json"
DEVICES, ELEMENTS, ROUNDS = 9, 12, 4
COUNTS = [3, 10, 7, 1, 20, 5, 8, 2, 4]
START = np.random.default_rng(0).standard_normal(ELEMENTS)


def updates(before: np.ndarray, round_number: int) -> np.ndarray:
    """Of the devices (K, E): towards a target, with noise, two far off."""
    draw = np.random.default_rng(100 + round_number)
    values = before + 0.3 * (1.0 - before) + 0.1 * draw.standard_normal((DEVICES, ELEMENTS))
    values[2] += 4.0
    values[5] -= 6.0
    return np.asarray(values)


def run(strategy: Any, *, correct: bool = False) -> list[dict[str, Any]]:
    """A few rounds: what went in and what came out."""
    before, rounds, rate = START, [], getattr(strategy, "eta", None)
    for number in range(1, ROUNDS + 1):
        sent = updates(before, number)
        if correct:
            assert rate is not None
            strategy.eta = rate * (1 - strategy.beta_1 ** (number + 1)) / np.sqrt(1 - strategy.beta_2 ** (number + 1))
        results = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([values]), count, {}))
            for values, count in zip(sent, COUNTS, strict=True)
        ]
        parameters, _ = strategy.aggregate_fit(number, results, [])
        after = parameters_to_ndarrays(parameters)[0]
        rounds.append({"before": before.tolist(), "sent": sent.tolist(), "after": after.tolist()})
        before = after
    return rounds


def main() -> None:
    first = ndarrays_to_parameters([START])
    adaptive = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
    reference = {
        "weighted-mean": run(strategies.FedAvg(inplace=False)),
        "coordinate-median": run(strategies.FedMedian()),
        "trimmed-mean": run(strategies.FedTrimmedAvg(beta=0.25)),
        "krum": run(strategies.Krum(num_malicious_clients=2)),
        "multi-krum": run(strategies.Krum(num_malicious_clients=2, num_clients_to_keep=DEVICES - 2)),
        "fedavgm": run(strategies.FedAvgM(initial_parameters=first, server_learning_rate=0.1, server_momentum=0.9)),
        "fedadam": run(strategies.FedAdam(initial_parameters=first, eta_l=0.1, **adaptive), correct=True),
        "fedyogi": run(strategies.FedYogi(initial_parameters=first, eta_l=0.1, **adaptive)),
    }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps({"flwr": flwr.__version__, "counts": COUNTS, "rounds": reference}) + "\n")


if __name__ == "__main__":
    main()
