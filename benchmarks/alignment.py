"""How far each objective's gradient points where the true one does, window by window.

    python -m benchmarks.alignment --out DIR [--texts 64] [--window-size 2] [--every 2]

SmolLM2-135M-Instruct writes the BBC's headlines (`benchmarks.headlines`: the same articles, template and loss).  Fresh
adapters; for each window the gradient with respect to its adapters of the paper's objective (local loss and λ = 0.2
times the global one through adapters) and of the true loss (foresight through layers), over the same texts in float32.
Prints the cosine of the two with a 95 % jackknife interval over groups of texts, and the ratio of their norms.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import markdown, save
from benchmarks.headlines import SETTINGS, Bench
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from stages.data.load import load_labelled
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.loading import LoadedModel
from stages.model.skeleton import Batch
from stages.streaming.stream import load_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import TokenCriterion
from stages.training.objective import Objective
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import UNTUNED, BottleneckTuning
from stages.weights.reader import Weights

GROUP = 8  # texts whose gradient is kept together
PAPER = LossWeights(local=1.0, downstream=0.2)
TRUE = LossWeights(local=0.0, downstream=1.0, through_layers=True)
Z95 = 1.96


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--window-size", type=int, default=2)
    parser.add_argument("--every", type=int, default=2, help="layers from a window to the next")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    bench = Bench.prepared(chosen.out)
    numerics = SETTINGS.numerics.computing_in("float32").model_copy(update={"micro_batch": GROUP})
    settings = SETTINGS.model_copy(update={"numerics": numerics})
    model = LoadedModel.open(bench.model, settings)
    examples = load_labelled(bench.out / "train.jsonl", settings.task, settings.prompt)[: chosen.texts]
    texts, backbone = EncodedTexts.encode(examples, model.encoder, GROUP), model.backbone
    layers = load_layers(backbone, range(backbone.num_layers))
    groups = [Group.of(backbone, texts, indices) for indices in texts.micro_batches(range(len(texts.rows)))]
    rows = []
    for start in range(0, backbone.num_layers - chosen.window_size + 1, chosen.every):
        window, count = Window(start=start, stop=start + chosen.window_size), sum(texts.target_counts)
        paper, true = (gradients(backbone, layers, groups, window, weights, count) for weights in (PAPER, TRUE))
        for group in groups:
            group.advance(backbone, layers, range(start, start + chosen.every))
        cosine, half = with_interval(paper, true)
        ratio = float(np.linalg.norm(paper.sum(0)) / np.linalg.norm(true.sum(0)))
        rows.append((start, cosine, half, ratio))
        print(f"layers {window}: cosine {cosine:.3f} ± {half:.3f}, size {ratio:.2f}", flush=True)
    save("alignment", {"texts": chosen.texts, "window_size": chosen.window_size, "rows": rows})
    cells = [(start, f"{cosine:.2f} ± {half:.2f}", f"{ratio:.2f}") for start, cosine, half, ratio in rows]
    print(markdown(("first layer", "cosine with the true gradient", "its size against the true one"), cells))


@dataclass
class Group:
    """Some texts, and their hidden states in front of the window."""

    batch: Batch
    targets: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, backbone: Backbone, texts: EncodedTexts, indices: list[int]) -> "Group":
        """In front of the first layer."""
        batch = texts.batch(indices)
        return cls(batch, texts.targets(indices), backbone.embed(batch))

    @torch.no_grad()
    def advance(self, backbone: Backbone, layers: dict[int, Weights], passed: range) -> None:
        """Through frozen layers, as far as there are any."""
        for layer in (layer for layer in passed if layer in layers):
            self.hidden = backbone.run_layers({layer: layers[layer]}, self.hidden, self.batch, UNTUNED)


def gradients(
    backbone: Backbone,
    layers: dict[int, Weights],
    groups: Sequence[Group],
    window: Window,
    weights: LossWeights,
    count: int,
) -> np.ndarray:
    """(groups, parameters): the gradient of each group of texts; they add up to that of all."""
    fresh = fresh_adapters(
        range(backbone.num_layers), hidden_size=backbone.hidden_size, bottleneck=backbone.hidden_size // 16, seed=0
    )
    adapters = adapters_from_tensors(fresh, "silu")
    trained = [value.requires_grad_() for layer in window.layers for value in adapters[layer].parameters()]
    criterion = TokenCriterion(LanguageHead.of(backbone, resident=True))
    objective = Objective(backbone, window, BottleneckTuning(adapters, {}), weights, criterion)
    passed = range(window.start, backbone.num_layers if weights.through_layers else window.stop)
    found = []
    for group in groups:
        own = {layer: layers[layer] for layer in passed}
        objective.accumulate(own, group.hidden, group.batch, group.targets, count=count)
        found.append(flat(trained))
    return np.stack(found)


def flat(parameters: Sequence[Tensor]) -> np.ndarray:
    """The gradients as one vector, which are cleared."""
    values = [parameter.grad.reshape(-1).double().numpy() for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return np.concatenate(values)


def with_interval(left_GP: np.ndarray, right_GP: np.ndarray) -> tuple[float, float]:
    """The cosine of two sums over groups, and half its 95 % interval by the delete-one jackknife."""

    def cosine(left: np.ndarray, right: np.ndarray) -> float:
        return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))

    left, right, count = left_GP.sum(0), right_GP.sum(0), len(left_GP)
    without = np.array([cosine(left - left_GP[group], right - right_GP[group]) for group in range(count)])
    half = Z95 * math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return cosine(left, right), half


if __name__ == "__main__":
    main()
