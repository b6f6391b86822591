"""One device's training as the stages do it, in one process: any window, any placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.assignment import Assignment
from schemas.refs import Window
from schemas.state import StateManifest
from stages.methods.device import Work
from stages.methods.registry import device_method
from stages.process.progress import silent
from stages.store.artifact import Artifact
from stages.store.cache_directory import CacheDirectory
from stages.streaming.placement import Placement
from stages.streaming.texts import EncodedTexts, training_batches
from stages.training.layers import DeviceTexts
from stages.training.loop import train
from stages.training.resume import TrainingCheckpoint
from tests.fleet.labelled_texts import LABELS, examples, save_texts, texts
from tests.fleet.models import open_model, save_model
from tests.fleet.recipes import settings
from tests.fleet.stages import begin


class OneDevice:
    """A tiny federation of one device: plan and state 0 as artifacts, a loaded model, texts.

    `save` puts the model into a directory.
    """

    def __init__(
        self,
        folder: Path,
        family: str,
        *,
        window_size: int = 2,
        micro_batch: int = 3,
        compute: str = "float32",
        batch_size: int = 5,
        epochs: int = 2,
        max_gradient_norm: float | str = "none",
        chain: dict[str, Any] | None = None,
        save: Callable[[Path, str], object] = save_model,
        **sections: Any,
    ) -> None:
        self.folder, self.window_size = folder, window_size
        save(folder / "model", family)
        rows = texts(10)
        data = save_texts(folder / "data.jsonl", rows)
        self.settings = settings(
            chain={"window_size": window_size, "start": 0} | (chain or {}),
            numerics={"micro_batch": micro_batch, "threads": 1, "compute": compute},
            optimizer={"batch_size": batch_size, "epochs": epochs, "max_gradient_norm": max_gradient_norm},
            **sections,
        )
        self.plan, self.state = begin(folder, folder / "model", data, self.settings)
        self.model = open_model(folder / "model", self.plan.manifest.settings)
        self.texts = EncodedTexts.encode(examples(rows), self.model.encoder, micro_batch)
        self.targets = torch.tensor([LABELS.index(row["label"]) for row in rows])

    def train(
        self, placement: Placement, *, start: int = 0, cache: CacheDirectory | None = None
    ) -> dict[str, np.ndarray]:
        """The tensors of one update for the window that begins at `start`."""
        assignment = Assignment.of(Window(start=start, stop=start + self.window_size))
        moved = self.state.manifest.model_copy(update={"assignment": assignment})
        state: Artifact[StateManifest] = Artifact(self.state.path, moved, self.state.digest)
        texts, batches = DeviceTexts(self.texts, self.targets), self.batches(state)
        training = device_method("chain").open(
            Work(self.model.backbone, self.plan, state, assignment, texts, placement, self.folder, cache)
        )
        counts = [texts.target_count(batch) for batch in batches]
        checkpoints = TrainingCheckpoint(self.folder, None, "", "", assignment, "one", "")
        tally = train(training, batches, counts, checkpoints, silent)
        self.first_loss = tally.summary().first
        return {name: value.copy() for name, value in training.tensors().items()}

    def batches(self, state: Artifact[StateManifest]) -> list[list[int]]:
        """Those of the plan's steps."""
        optimizer, number = self.settings.optimizer, state.manifest.round
        return training_batches(
            len(self.texts.rows), optimizer, seed=self.settings.seed, round_number=number, device="one"
        )


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)
