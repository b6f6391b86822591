"""Time, peak memory and size of a report of a large run: `python -m benchmarks.report [--per-round 50]`.

The run folder is written with the store, artifact by artifact, as the commands write it; nothing is trained.
"""

import argparse
import math
import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import call, chainctl, run_arm
from schemas.assignment import Assignment
from schemas.devices import ACCEPTED_FILE, PARTICIPANTS_FILE, AcceptedUpdate, Participant
from schemas.evaluation import Estimate, EvaluationManifest
from schemas.ledger import Accepted, Closed, Event, Refused
from schemas.measured import Cost, LayerPasses
from schemas.methods import ChainProgress
from schemas.state import StateManifest
from schemas.update import TrainingLoss, UpdateManifest
from stages.process.measure import MeasuredFacts
from stages.store.artifact import Artifact, new_artifact, open_artifact
from stages.store.ledger import Ledger
from stages.store.lines import encode_lines
from tests import fleet
from tests.fleet.server import windows_of

TENSORS = {f"adapters.{layer}.{part}": np.ones((2, 4), np.float32) for layer in range(6) for part in ("down", "up")}
LABELS = ("business", "entertainment", "politics", "sport", "tech")
TEXTS = 400  # of the evaluation
MIB = 2**20


class Made:
    """A run folder in the making."""

    def __init__(self, folder: Path, devices: int, per_round: int) -> None:
        self.folder, self.per_round = folder, per_round
        self.draw = random.Random(0)
        self.names = [f"device-{number:04}" for number in range(devices)]
        curve = [0.97, 0.93, 0.88, 0.79, 0.71, 0.62]
        profiles = [fleet.profile_manifest(name, curve, texts=200, budget=2**31) for name in self.names]
        self.plan = fleet.write_plan(folder / "plan", profiles, fleet.decided(), bottleneck=2)
        self.windows = [Assignment.of(window) for window in windows_of(self.plan.manifest)]
        self.ledger = Ledger(folder / "states" / "ledger.jsonl")
        self.participants = self.drawn()
        self.state = self.write_state(0, None, ())
        self.evaluate(0)
        self.ledger.planned(self.plan.digest, self.state.digest, per_round)

    def drawn(self) -> list[str]:
        return sorted(self.draw.sample(self.names, self.per_round))

    def write_state(
        self, number: int, parent: str | None, accepted: Sequence[AcceptedUpdate], measured: MeasuredFacts | None = None
    ) -> Artifact[StateManifest]:
        out = self.folder / "states" / f"{number:04}"
        lines = encode_lines(ACCEPTED_FILE, accepted)
        asked = encode_lines(PARTICIPANTS_FILE, (Participant(name=name) for name in self.participants))
        with new_artifact(out, force=False) as draft:
            references, files = draft.write_tensors(TENSORS)
            draft.write_lines(lines, asked)
            manifest = StateManifest(
                plan=self.plan.digest,
                parent=parent,
                round=number,
                assignment=self.windows[number % len(self.windows)],
                progress=ChainProgress(),
                moved=bool(accepted),
                participant_count=asked.count,
                accepted_count=lines.count,
                example_count=sum(update.example_count for update in accepted),
                train_loss=1.6 * math.exp(-number / 60) + 0.2 if accepted else None,
                tensors=references,
                files=(lines.reference, asked.reference, *files),
            )
            draft.finish(manifest, measured)
        return open_artifact(out, StateManifest)

    def round(self, number: int) -> None:
        """Updates, one of them refused; the next state and its evaluation; the lines of the ledger."""
        updates = [self.update(number, name) for name in self.participants]
        counted, refused = updates[:-1], updates[-1]
        accepted = [
            AcceptedUpdate(
                name=one.manifest.device, update=one.digest, example_count=200, train_loss=one.manifest.loss.mean
            )
            for one in counted
        ]
        cost = Cost(
            updates=len(counted),
            seconds=30.0 * len(counted),
            peak_bytes=700 * MIB,
            passes=1800 * len(counted),
            visits=200 * len(counted),
            bytes_read=10**9,
            bytes_up=300_000 * len(counted),
            bytes_down=900_000 * len(counted),
        )
        parent = self.state
        self.participants = self.drawn()
        self.state = self.write_state(number + 1, parent.digest, accepted, MeasuredFacts(seconds=1.0, updates=cost))
        self.evaluate(number + 1)
        of_round: dict[str, Any] = {"plan": self.plan.digest, "state": parent.digest, "round": number}

        closed = Closed(
            previous=None,
            plan=self.plan.digest,
            parent=parent.digest,
            round=number,
            state=self.state.digest,
            participant_count=self.per_round,
        )
        events: list[Event] = [
            Refused(previous=None, reason="norm", update=refused.digest, device=refused.manifest.device, **of_round),
            *(Accepted(previous=None, update=one.update, device=one.name, **of_round) for one in accepted),
            closed,
        ]
        self.ledger.append(lambda _: [partial(follow, event) for event in events])

    def update(self, number: int, name: str) -> Artifact[UpdateManifest]:
        out = self.folder / "updates" / f"{number:04}" / name
        loss = 1.6 * math.exp(-number / 60) + 0.2 + self.draw.random() * 0.3
        with new_artifact(out, force=False) as draft:
            manifest = fleet.update_manifest(
                plan=self.plan.digest,
                state=self.state.digest,
                round=number,
                device=name,
                example_count=200,
                loss=TrainingLoss(first=loss, last=loss, mean=loss, mean_local=loss, mean_global=None),
                tensors=(),
                files=(),
            )
            facts = MeasuredFacts(
                seconds=30 + 5 * self.draw.random(),
                predicted_peak_bytes=600 * MIB,
                peak_bytes=int((520 + 120 * self.draw.random()) * MIB),
                bytes_streamed=10**8,
                passes=LayerPasses(forward=1200, backward=600, visits=200),
            )
            draft.finish(manifest, facts)
        return Artifact(out, manifest, manifest.digest)

    def evaluate(self, number: int) -> None:
        right = TEXTS - int(0.7 * TEXTS * math.exp(-number / 40)) - 20
        share = right / TEXTS
        estimate = Estimate(value=share, low=share - 0.03, high=share + 0.03)
        confusion = [[0] * len(LABELS) for _ in LABELS]
        confusion[0][0], confusion[0][1] = right, TEXTS - right
        manifest = EvaluationManifest(
            plan=self.plan.digest,
            state=self.state.digest,
            round=number,
            data=fleet.ZERO,
            example_count=TEXTS,
            labels=LABELS,
            accuracy=estimate,
            macro_f1=estimate,
            loss=1.0,
            confusion=tuple(map(tuple, confusion)),
        )
        with new_artifact(self.folder / "evals" / f"{number:04}", force=False) as draft:
            draft.finish(manifest, MeasuredFacts(seconds=1.0))


def follow(event: Event, previous: str | None) -> Event:
    """The event behind the line with that digest."""
    return event.model_copy(update={"previous": previous})


def make(folder: Path, *, devices: int, rounds: int, per_round: int) -> Path:
    """A run folder, made once."""
    if not (folder / "done").exists():
        made = Made(folder, devices, per_round)
        for number in range(rounds):
            made.round(number)
        (folder / "done").touch()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/report"))
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--per-round", type=int, default=50)
    chosen = parser.parse_args()
    name = f"{chosen.devices}-devices-{chosen.rounds}-rounds-{chosen.per_round}-each"
    run = make(chosen.out / name, devices=chosen.devices, rounds=chosen.rounds, per_round=chosen.per_round)
    page = chosen.out / f"{name}.html"
    call("report", run, "-o", page, "--force")  # files are in the page cache afterwards
    before = os.times()
    measured = run_arm("report", chainctl("report", run, "-o", page, "--force"))
    size = page.stat().st_size
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    took = f"{measured.seconds} s, of which {processor:.1f} s on a processor"
    print(f"{name}: {took}, peak {measured.peak} MiB, page {size / MIB:.2f} MiB")


if __name__ == "__main__":
    main()
