"""What a simulated federation costs against a plain loop in PyTorch that does the same work.

    python -m benchmarks.overhead [minilm bert-base] [--repeats 2] [--rounds 12] [--texts N] [--threads 2]

The loop keeps the model in memory and computes everything where it is needed: profiles of all devices, the rounds of
the chain (same devices, texts, order, micro-batches, windows, adapters, optimizer), an evaluation after each.  It
writes no file and caches no hidden state.  It is written as one would: no gradients before the first adapter that
trains, no layer behind the window in a step, a fused optimizer, texts sorted by length where nothing is learned.

`minilm` is the demo (real model and texts, 96 tokens); `bert-base` has random weights and fewer texts.  Arms take
turns in one process; the order changes with each repeat.  Prints seconds of both and the ratio simulate / loop, with
profiles and without (what profiles left in the cache serves the rounds either way), wall and processor time.  The run
fails where the two end with different accuracies.
"""

import argparse
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor, nn
from transformers import AutoModel

from benchmarks.harness import markdown, random_model, save
from schemas.methods import ChainDecisions, ChainSettings
from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.settings import Settings
from stages import demo
from stages.assets import ASSETS, get_asset
from stages.data.encode import Encoder
from stages.data.load import label_indices, load_labelled
from stages.data.split import holdout_file
from stages.federated.sampling import sample_devices
from stages.federation.prepare import Federation
from stages.federation.simulate import run as simulate
from stages.model.backbone import Backbone
from stages.similarity.cka import cka_with_interval, gram
from stages.store.artifact import open_artifact
from stages.streaming.texts import EncodedTexts, training_batches
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.tensors import fresh_adapters

SAME_ACCURACY = 0.02  # of the last round; bits differ where a padded row stands in another batch
WORDS, MOST_WORDS = 30_000, 120  # of random models and their texts
BERT_BASE = {"devices": 4, "rounds": 8, "texts": 160, "test": 40}


@dataclass
class Cost:
    """Seconds of an arm: all of it and its profiles, by the clock and of all processors together."""

    wall: float = 0.0
    cpu: float = 0.0
    profiles_wall: float = 0.0
    accuracies: list[float] = field(default_factory=list)

    @property
    def rounds_wall(self) -> float:
        """Without profiles."""
        return self.wall - self.profiles_wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["minilm", "bert-base"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--texts", type=int, help="to train on; a quarter as many are held out")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    results: dict[str, dict[str, float]] = {}
    for name in chosen.models:
        with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as folder:
            federation = federation_of(name, Path(folder), chosen.rounds, chosen.texts, chosen.threads)
            results[name] = compare(federation, Path(folder), chosen.repeats)
            print(name, json.dumps(results[name]), flush=True)
    save("overhead", results)
    columns = list(next(iter(results.values())))
    print(markdown(("", *columns), [(name, *(f"{row[key]:.2f}" for key in columns)) for name, row in results.items()]))


def federation_of(name: str, folder: Path, rounds: int | None, texts: int | None, threads: int) -> Federation:
    """What both arms do."""
    news = get_asset(ASSETS["bbc-news"], say=lambda line: None)
    holdout_file(news, folder / "data", fraction=0.2, seed=0, deduplicate=True)
    papers = ChainSettings(foresight="adapters", window_size=2, cka_threshold=0.9)
    settings, devices = demo.SETTINGS.model_copy(update={"chain": papers}), demo.DEVICES
    if name == "minilm":
        model = get_asset(ASSETS["minilm"], say=lambda line: None)
    else:
        model = random_model(name, folder)
        chain = ChainSettings(foresight="adapters", start=2, window_size=3)
        settings, devices = settings.model_copy(update={"chain": chain}), BERT_BASE["devices"]
        per_round = settings.federation.model_copy(update={"devices_per_round": 2})
        settings = settings.model_copy(update={"federation": per_round})
        rounds, texts = rounds or BERT_BASE["rounds"], texts or BERT_BASE["texts"]
    train, test = (folder / "data" / f"{part}.jsonl" for part in ("train", "test"))
    if name != "minilm":
        for path in (train, test):
            in_random_words(path)
    if texts is not None:
        thin(train, texts)
        thin(test, texts // 4)
    numerics = settings.numerics.model_copy(update={"threads": threads})
    return Federation(
        model_dir=model,
        data=train,
        test=test,
        settings=settings.model_copy(update={"numerics": numerics}),
        devices=devices,
        rounds=rounds or demo.ROUNDS,
        alpha=demo.ALPHA if name == "minilm" else None,
        memory_budgets=(8 * demo.MEMORY_BUDGET_BYTES,),
    )


def in_random_words(path: Path) -> None:
    """Replace each word by one of the random model's vocabulary, which knows no English."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["text"] = " ".join(f"w{4 + zlib.crc32(word.encode()) % WORDS}" for word in row["text"].split()[:MOST_WORDS])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def thin(path: Path, count: int) -> None:
    """Keep that many lines, from all over the file."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:: max(1, len(lines) // count)][:count]))


def compare(federation: Federation, folder: Path, repeats: int) -> dict[str, float]:
    """Medians over repeats."""
    costs: list[tuple[Cost, Cost]] = []
    for repeat in range(repeats):
        simulated = run_simulation(federation, folder / f"run-{repeat}") if repeat % 2 == 0 else None
        looped = Loop.of(federation, folder / "run-0").run()
        simulated = simulated or run_simulation(federation, folder / f"run-{repeat}")
        print(f"simulate {simulated}\nloop     {looped}", flush=True)
        difference = abs(simulated.accuracies[-1] - looped.accuracies[-1])
        assert difference <= SAME_ACCURACY, f"the arms end with accuracies that differ by {difference:.3f}"
        costs.append((simulated, looped))
    return {
        "simulate, s": statistics.median(ours.wall for ours, _ in costs),
        "loop, s": statistics.median(theirs.wall for _, theirs in costs),
        "ratio": statistics.median(ours.wall / theirs.wall for ours, theirs in costs),
        "ratio without profiles": statistics.median(ours.rounds_wall / theirs.rounds_wall for ours, theirs in costs),
        "ratio of processor time": statistics.median(ours.cpu / theirs.cpu for ours, theirs in costs),
        "accuracy, simulate": costs[0][0].accuracies[-1],
        "accuracy, loop": costs[0][1].accuracies[-1],
    }


def run_simulation(federation: Federation, out: Path) -> Cost:
    began, cpu = time.perf_counter(), time.process_time()
    summary = simulate(federation, out=out)
    cost = Cost(time.perf_counter() - began, time.process_time() - cpu)
    for path in sorted((out / "profiles").iterdir()):
        measured = open_artifact(path, ProfileManifest).measured()
        cost.profiles_wall += measured.seconds if measured else 0.0
    scores = [summary.accuracy_before, *(line.accuracy for line in summary.rounds)]
    cost.accuracies = [score for score in scores if score is not None]
    return cost


class Adapter(nn.Module):
    """Eq. 1, as a module."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.down, self.down_bias, self.up, self.up_bias = (nn.Parameter(tensor.clone()) for tensor in tensors)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + F.linear(F.relu(F.linear(hidden, self.down, self.down_bias)), self.up, self.up_bias)


class Chain(nn.Module):
    """What trains: adapters from the start layer on, and a linear head on the mean."""

    def __init__(self, adapters: dict[int, Adapter], head: nn.Linear) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({str(layer): adapter for layer, adapter in adapters.items()})
        self.head = head

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        name = str(layer)
        changed: Tensor = self.adapters[name](hidden) if name in self.adapters else hidden
        return changed

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(-1).float()
        answer: Tensor = self.head((hidden * real).sum(1) / real.sum(1))
        return answer


@dataclass
class Loop:
    """The plain loop over a resident BERT."""

    model: Any
    settings: Settings
    decisions: ChainDecisions
    shards: dict[str, tuple[EncodedTexts, Tensor]]
    test: tuple[EncodedTexts, Tensor]
    chain: Chain
    rounds: int

    @classmethod
    def of(cls, federation: Federation, run: Path) -> "Loop":
        """Ready to run what was simulated in `run`: opening, reading and encoding are not timed."""
        plan = open_artifact(run / "plan", PlanManifest).manifest
        settings = plan.settings
        encoder = Encoder.load(federation.model_dir, settings.encoding, settings.prompt)

        def read(path: Path) -> tuple[EncodedTexts, Tensor]:
            examples = load_labelled(path, settings.task, settings.prompt)
            texts = EncodedTexts.encode(examples, encoder, settings.numerics.rows)
            return texts, torch.tensor(label_indices(examples, settings.task.labels))

        backbone = Backbone.open(federation.model_dir, settings, pad_id=encoder.pad_id)
        layers = range(plan.decisions.first_layer, plan.model.num_layers)
        tensors = fresh_adapters(
            layers, hidden_size=plan.model.hidden_size, bottleneck=plan.bottleneck, seed=settings.seed
        )
        adapters = {layer: Adapter(one.parameters()) for layer, one in adapters_from_tensors(tensors, "relu").items()}
        head = nn.Linear(plan.model.hidden_size, len(settings.task.labels))
        head.load_state_dict({name.removeprefix("classifier."): v for name, v in backbone.initial_head.items()})
        model = AutoModel.from_pretrained(federation.model_dir, dtype=torch.float32).eval().requires_grad_(False)
        decisions = plan.decisions
        assert isinstance(decisions, ChainDecisions)
        shards = {path.stem: read(path) for path in sorted((run / "shards").glob("*.jsonl"))}
        return cls(model, settings, decisions, shards, read(federation.test), Chain(adapters, head), federation.rounds)

    def run(self) -> Cost:
        cost, began, cpu = Cost(), time.perf_counter(), time.process_time()
        for texts, _ in self.shards.values():
            if len(texts.rows) >= self.settings.similarity.min_examples:
                self.profile(texts)
        cost.profiles_wall = time.perf_counter() - began
        cost.accuracies.append(self.accuracy())
        for number in range(self.rounds):
            self.round(number)
            cost.accuracies.append(self.accuracy())
        cost.wall, cost.cpu = time.perf_counter() - began, time.process_time() - cpu
        return cost

    @torch.no_grad()
    def profile(self, texts: EncodedTexts) -> list[tuple[float, float, float]]:
        """CKA of each layer with the embeddings, of means over tokens."""
        width = self.model.config.hidden_size
        pooled = [np.empty((len(texts.rows), width)) for _ in range(len(self.layers) + 1)]
        for indices in texts.chunks():
            hidden, mask, seen = self.embed(texts, indices)
            for depth in range(len(self.layers) + 1):
                real = mask.unsqueeze(-1).float()
                pooled[depth][indices] = ((hidden * real).sum(1) / real.sum(1)).numpy()
                if depth < len(self.layers):
                    hidden = self.layers[depth](hidden, attention_mask=seen)
        kernels = [gram(features, "linear") for features in pooled]
        return [cka_with_interval(kernels[0], kernel, "unbiased") for kernel in kernels[1:]]

    def round(self, number: int) -> None:
        """Every participant trains a copy; the mean, weighted by texts, is the next chain."""
        window = self.decisions.windows[number % len(self.decisions.windows)]
        names = sample_devices(
            self.settings.seed, number, list(self.shards), self.settings.federation.devices_per_round
        )
        chains, counts = [], []
        for name in names:
            chains.append(self.train(deepcopy(self.chain), name, number, window.start, window.stop))
            counts.append(len(self.shards[name][0].rows))
        total: dict[str, Tensor] = {}
        for chain, count in zip(chains, counts, strict=True):
            for key, value in chain.state_dict().items():
                total[key] = total.get(key, torch.zeros(())) + value.double() * (count / sum(counts))
        self.chain.load_state_dict({key: value.float() for key, value in total.items()})

    def train(self, chain: Chain, device: str, number: int, start: int, stop: int) -> Chain:
        texts, labels = self.shards[device]
        trained = [p for layer in range(start, stop) for p in chain.adapters[str(layer)].parameters()]
        trained += chain.head.parameters()
        chain.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_()
        chosen = self.settings.optimizer
        optimizer = torch.optim.AdamW(trained, lr=chosen.rate(number), weight_decay=chosen.weight_decay, fused=True)
        batches = training_batches(len(texts.rows), chosen, seed=self.settings.seed, round_number=number, device=device)
        for batch in batches:
            for indices in texts.micro_batches(batch):
                self.loss(chain, texts, labels, indices, start, stop, count=len(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return chain

    def loss(
        self, chain: Chain, texts: EncodedTexts, labels: Tensor, indices: list[int], start: int, stop: int, count: int
    ) -> Tensor:
        """Eq. 2.  Nothing before the first adapter that trains needs a gradient."""
        with torch.no_grad():
            hidden, mask, seen = self.embed(texts, indices)
            for layer in range(start):
                hidden = chain.after(layer, self.layers[layer](hidden, attention_mask=seen))
            hidden = self.layers[start](hidden, attention_mask=seen)
        hidden = chain.after(start, hidden)
        for layer in range(start + 1, stop):
            hidden = chain.after(layer, self.layers[layer](hidden, attention_mask=seen))
        targets = labels[indices]
        loss = F.cross_entropy(chain.logits(hidden, mask), targets, reduction="sum") / count
        settings = self.settings.chain
        assert isinstance(settings, ChainSettings)
        if stop < len(self.layers) and settings.weights.downstream > 0:
            for layer in range(stop, len(self.layers)):
                hidden = chain.after(layer, hidden)
            whole = F.cross_entropy(chain.logits(hidden, mask), targets, reduction="sum") / count
            loss = loss + settings.weights.downstream * whole
        return loss

    @torch.no_grad()
    def accuracy(self) -> float:
        texts, labels = self.test
        right = 0
        for indices in texts.chunks():
            hidden, mask, seen = self.embed(texts, indices)
            for layer in range(len(self.layers)):
                hidden = self.chain.after(layer, self.layers[layer](hidden, attention_mask=seen))
            right += int((self.chain.logits(hidden, mask).argmax(1) == labels[indices]).sum())
        return right / len(labels)

    @property
    def layers(self) -> Any:
        return self.model.encoder.layer

    def embed(self, texts: EncodedTexts, indices: list[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """h_0 (B, S, D), the mask (B, S), and the mask as attention takes it (None: nothing is padded)."""
        batch = texts.batch(indices)
        mask = batch.attention_mask
        seen = mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1) if not mask.all() else None
        return self.model.embeddings(batch.input_ids), mask, seen


if __name__ == "__main__":
    main()
