"""How far each objective's gradient points where the true one does, window by window.

    python -m benchmarks.alignment --out DIR [--texts 64] [--window-size 2] [--every 2]

Two models.  SmolLM2-135M-Instruct writes the BBC's headlines (`benchmarks.headlines`: the same articles, template and
loss).  MiniLM sorts BBC news (`benchmarks.classification`: the same texts and settings), under a head that four rounds
of a linear probe trained: a fresh head has no gradient to compare.  Fresh adapters; for each window the gradient with
respect to its adapters of the paper's objective (local loss and λ = 0.2 times the global one through adapters) and of
the true loss (foresight through layers), over the same texts in float32.  Prints the cosine of the two with a 95 %
jackknife interval over groups of texts, and the ratio of their norms; draws docs/alignment.svg.
"""

import argparse
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.classification import federated, texts_of
from benchmarks.harness import ROOT, markdown, save
from benchmarks.headlines import SETTINGS as HEADLINES
from benchmarks.headlines import Bench
from schemas.methods import LinearProbeSettings
from schemas.methods.chain import LossWeights
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.settings import Settings
from schemas.state import StateManifest
from stages.assets import ASSETS, get_asset
from stages.data.load import load_labelled
from stages.federation import simulate
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.loading import LoadedModel
from stages.model.skeleton import Batch
from stages.report.figure import COLOURS, QUIET, STYLE
from stages.store.artifact import open_artifact, read_tensors
from stages.store.files import write_file
from stages.streaming.stream import load_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import ClassCriterion, Criterion, TokenCriterion
from stages.training.objective import Objective
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import UNTUNED, BottleneckTuning
from stages.weights.reader import Weights

PICTURE = ROOT / "docs" / "alignment.svg"
PROBE_ROUNDS = 4
GROUP = 8  # texts whose gradient is kept together
PAPER = LossWeights(local=1.0, downstream=0.2)
TRUE = LossWeights(local=0.0, downstream=1.0, through_layers=True)
Z95 = 1.96


Row = tuple[int, float, float, float]  # first layer, cosine, half its interval, ratio of norms


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--window-size", type=int, default=2)
    parser.add_argument("--every", type=int, default=2, help="layers from one window of SmolLM2 to the next")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    measured: dict[str, list[Row]] = {}
    for name, prepared, every in (("MiniLM", classes, 1), ("SmolLM2-135M-Instruct", headlines, chosen.every)):
        print(f"{name}:", flush=True)
        measured[name] = prepared(chosen.out, chosen.texts).rows(chosen.window_size, every)
        save("alignment", {"texts": chosen.texts, "window_size": chosen.window_size, "rows": measured})
        cells = [(start, f"{cosine:.2f} ± {half:.2f}", f"{ratio:.2f}") for start, cosine, half, ratio in measured[name]]
        print(markdown(("first layer", "cosine with the true gradient", "its size against the true one"), cells))
    write_file(PICTURE, draw(measured))


@dataclass
class Group:
    """Some texts, and their hidden states in front of the window."""

    batch: Batch
    targets: Tensor
    hidden: Tensor

    @torch.no_grad()
    def advance(self, backbone: Backbone, layers: dict[int, Weights], passed: range) -> None:
        """Through frozen layers, as far as there are any."""
        for layer in (layer for layer in passed if layer in layers):
            self.hidden = backbone.run_layers({layer: layers[layer]}, self.hidden, self.batch, UNTUNED)


@dataclass
class Learner:
    """A model with its layers in memory, texts in groups, and how their loss is computed."""

    backbone: Backbone
    groups: list[Group]
    count: int  # of all targets
    criterion: Criterion
    activation: Literal["silu", "gelu"]

    def rows(self, window_size: int, every: int) -> list[Row]:
        """Every window, from the first layer up."""
        layers, found = load_layers(self.backbone, range(self.backbone.num_layers)), list[Row]()
        for start in range(0, self.backbone.num_layers - window_size + 1, every):
            window = Window(start=start, stop=start + window_size)
            paper, true = (self.gradients(layers, window, weights) for weights in (PAPER, TRUE))
            for group in self.groups:
                group.advance(self.backbone, layers, range(start, start + every))
            cosine, half = with_interval(paper, true)
            found.append((start, cosine, half, float(np.linalg.norm(paper.sum(0)) / np.linalg.norm(true.sum(0)))))
            print(f"layers {window}: cosine {cosine:.3f} ± {half:.3f}, size {found[-1][-1]:.2f}", flush=True)
        return found

    def gradients(self, layers: dict[int, Weights], window: Window, weights: LossWeights) -> np.ndarray:
        """(groups, parameters): the gradient of each group of texts; they add up to that of all."""
        width, depth = self.backbone.hidden_size, self.backbone.num_layers
        fresh = fresh_adapters(range(depth), hidden_size=width, bottleneck=width // 16, seed=0)
        adapters = adapters_from_tensors(fresh, self.activation)
        trained = [value.requires_grad_() for layer in window.layers for value in adapters[layer].parameters()]
        objective = Objective(self.backbone, window, BottleneckTuning(adapters, {}), weights, self.criterion)
        passed = range(window.start, depth if weights.through_layers else window.stop)
        found = []
        for group in self.groups:
            own = {layer: layers[layer] for layer in passed}
            objective.accumulate(own, group.hidden, group.batch, group.targets, count=self.count)
            found.append(flat(trained))
        return np.stack(found)


def headlines(out: Path, count: int) -> Learner:
    """SmolLM2 and the first training articles."""
    bench = Bench.prepared(out)
    settings = in_float32(HEADLINES)
    model = LoadedModel.open(bench.model, settings)
    examples = load_labelled(bench.out / "train.jsonl", settings.task, settings.prompt)[:count]
    texts = EncodedTexts.encode(examples, model.encoder, GROUP)
    groups = list(grouped(model.backbone, texts, texts.targets))
    criterion = TokenCriterion(LanguageHead.of(model.backbone, resident=True))
    return Learner(model.backbone, groups, sum(texts.target_counts), criterion, "silu")


def classes(out: Path, count: int) -> Learner:
    """MiniLM and the first training texts, under the head of a linear probe."""
    run, asset, data = out / "probe", get_asset(ASSETS["minilm"]), texts_of(out)
    federation = federated(asset, data, LinearProbeSettings(), seed=0, rounds=PROBE_ROUNDS)
    simulate.run(federation, out=run)
    plan = open_artifact(run / "plan", PlanManifest).manifest
    state = open_artifact(run / "states" / f"{PROBE_ROUNDS:04d}", StateManifest)
    model = LoadedModel.open(asset, in_float32(plan.settings))
    rows = load_labelled(data / "train.jsonl", plan.settings.task, plan.settings.prompt)[:count]
    texts = EncodedTexts.encode(rows, model.encoder, GROUP)
    labels = torch.tensor([plan.settings.task.labels.index(row.label) for row in rows])
    head = {
        name.removeprefix("head."): torch.from_numpy(np.array(values)).requires_grad_()
        for name, values in read_tensors(state, "head.").items()
    }
    groups = list(grouped(model.backbone, texts, lambda indices: labels[indices]))
    return Learner(model.backbone, groups, len(rows), ClassCriterion(model.backbone, head), "gelu")


def in_float32(settings: Settings) -> Settings:
    """The same, a group of texts at a time."""
    numerics = settings.numerics.computing_in("float32").model_copy(update={"micro_batch": GROUP})
    return settings.model_copy(update={"numerics": numerics})


def grouped(backbone: Backbone, texts: EncodedTexts, targets: Callable[[list[int]], Tensor]) -> Iterator[Group]:
    """Groups in front of the first layer."""
    for indices in texts.micro_batches(range(len(texts.rows))):
        batch = texts.batch(indices)
        yield Group(batch, targets(indices), backbone.embed(batch))


def draw(measured: dict[str, list[Row]]) -> bytes:
    """The cosines by depth, as an SVG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        for axes, (name, rows), colour in zip(
            figure.subplots(1, 2, sharey=True), measured.items(), COLOURS, strict=False
        ):
            starts, cosines, halves, _ = zip(*rows, strict=True)
            axes.axhline(0, color=QUIET, linewidth=0.8)
            axes.errorbar(starts, cosines, yerr=halves, color=colour, marker="o", markersize=4, capsize=2)
            axes.set_title(f"{name}: cosine with the true gradient", loc="left", fontsize=11)
            axes.set_xlabel("first layer of the window")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylim(-0.3, 1.05)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


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
