"""A small language model learns to write the BBC's headlines, on twenty devices that keep their articles.

    python -m benchmarks.headlines --out DIR [--seeds N] [--write] [--arms TEXT] [--more]

SmolLM2-135M-Instruct (bfloat16) on BBC news: the prompt is the first fifty words of an article, the response its
headline, in the model's own chat template.  20 devices (IID), two of them a round, ten steps of AdamW on batches of
four, loss on the headline only.  Every arm has as many rounds as four rounds of full adapters cost in passes of a text
through a layer, and a learning rate of its own: from 1e-3 by factors of two, as long as the perplexity of 60 training
articles after two rounds gets better.  Then several seeds (of the split, the fresh adapters and who takes part).  On 60
held-out articles: perplexity of the headline and, with `--write`, the ROUGE-L of the first seed's greedy headlines.

Passes are those that the devices count.  A run that was stopped is continued by the same command.  Writes
benchmarks/results/headlines.json and prints tables; `--more` adds to the results and learning rates that are there.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.harness import RESULTS, call, markdown, save
from schemas.methods import ChainSettings, FullAdaptersSettings, MethodSettings
from schemas.run import RoundLine, SimulationSummary
from schemas.settings import (
    EncodingSettings,
    FederationSettings,
    NumericsSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    SimilaritySettings,
    TaskSettings,
)
from stages import generate
from stages.assets import ASSETS, get_asset
from stages.data.load import load_examples
from stages.data.template import as_fields
from stages.federation import simulate
from stages.federation.prepare import Federation
from stages.inference.generate import Sampling
from stages.session import Machine
from stages.store.files import write_file
from stages.suites.scores import rouge_l

DEVICES, TEST, HELD, WORDS, NEW_TOKENS = 20, 60, 60, 50, 24
FULL_ROUNDS, GRID_ROUNDS, GRID_SEED = 4, 2, 1000
FIRST_RATE = 1e-3
INSTRUCTION = "Write a short headline for this news article."
SETTINGS = Settings(
    task=TaskSettings(kind="causal-lm"),
    prompt=PromptSettings(format="alpaca"),
    encoding=EncodingSettings(max_length=144),
    similarity=SimilaritySettings(max_examples=8, min_examples=5),
    optimizer=OptimizerSettings(steps=10, batch_size=4),
    numerics=NumericsSettings(compute="bfloat16", threads=1),
    federation=FederationSettings(devices_per_round=2),
)


@dataclass(frozen=True)
class Arm:
    """A way to train, with as many rounds as cost about the passes of four rounds of full adapters."""

    name: str
    chain: MethodSettings
    rounds: int = FULL_ROUNDS
    reduction_factor: int = 16  # of the hidden size, 576: adapters of width 36

    def settings(self, seed: int, rate: float) -> Settings:
        """The recipe."""
        optimizer = SETTINGS.optimizer.model_copy(update={"learning_rate": rate})
        adapter = SETTINGS.adapter.model_copy(update={"reduction_factor": self.reduction_factor})
        return SETTINGS.model_copy(
            update={"chain": self.chain, "seed": seed, "optimizer": optimizer, "adapter": adapter}
        )


Order = Literal["upwards", "downwards"]
Stride = int | Literal["window"]


def exact(window_size: int, *, order: Order = "downwards", stride: Stride = "window") -> ChainSettings:
    """The chain through the frozen layers."""
    return ChainSettings(window_size=window_size, start=0, foresight="layers", order=order, stride=stride)


ARMS = (
    Arm("full adapters, width 36", FullAdaptersSettings()),
    Arm("full adapters, width 9", FullAdaptersSettings(), reduction_factor=64),
    Arm("full adapters, width 3", FullAdaptersSettings(), reduction_factor=192),
    Arm("exact chain, Q = 8, downwards", exact(8), rounds=5),
    Arm("exact chain, Q = 8, downwards, width 9", exact(8), rounds=5, reduction_factor=64),
    Arm("exact chain, Q = 4, downwards", exact(4), rounds=6),
    Arm("exact chain, Q = 8, downwards by one layer", exact(8, stride=1), rounds=6),
    Arm("exact chain, Q = 8, upwards", exact(8, order="upwards"), rounds=5),
    Arm("the paper's chain, the last 4 layers", ChainSettings(window_size=4, start=26, foresight="adapters"), rounds=7),
)


def main() -> None:
    """Find every arm's learning rate, run it with every seed, then say what each state writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="for two processes that share the work")
    parser.add_argument("--write", action="store_true", help="also write headlines (minutes for each arm)")
    parser.add_argument("--arms", default="", help="only arms whose name contains this text")
    parser.add_argument("--more", action="store_true", help="add to the results that are there")
    options = parser.parse_args()
    bench = Bench.prepared(options.out, options.write)
    arms = [arm for arm in ARMS if options.arms in arm.name]
    earlier = json.loads((RESULTS / "headlines.json").read_bytes()) if options.more else {"rates": {}, "runs": []}
    rates = earlier["rates"]
    rates |= {arm.name: bench.best_rate(arm) for arm in arms if arm.name not in rates}
    found = {(run["method"], run["seed"]): run for run in earlier["runs"]}
    for seed in range(options.first_seed, options.seeds):
        for arm in arms:
            found[arm.name, seed] = bench.measure(arm, seed, rates[arm.name])
            results = [found[key] for key in sorted(found)]
            save("headlines", {"settings": SETTINGS.model_dump(mode="json"), "rates": rates, "runs": results})
    print(markdown(("", *COLUMNS), list(rows(results))), end="\n\n")
    if options.write:
        columns = ("the BBC's", "before", *(one["method"] for one in examples_of(results)))
        print(markdown(columns, list(written(results))))


@dataclass(frozen=True)
class Bench:
    """Where the model and the texts lie."""

    out: Path
    model: Path
    write: bool = False

    @classmethod
    def prepared(cls, out: Path, write: bool = False) -> "Bench":
        """Get model and articles, and write the records: for training and testing, and a split of the former."""
        model = out / "model"
        if not model.exists():
            call("model", "import", next(get_asset(ASSETS["smollm2-135m"]).glob("*.gguf")), "--out", model)
        if not (out / "train.jsonl").exists():
            records = list(articles(get_asset(ASSETS["bbc-news"])))
            random.Random(0).shuffle(records)
            train = records[TEST:]
            parts = {"test": records[:TEST], "held": train[:HELD], "rest": train[HELD:], "train": train}
            for name, part in parts.items():
                write_file(out / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in part).encode())
        return cls(out, model, write)

    def best_rate(self, arm: Arm) -> float:
        """The learning rate with the best perplexity on held-out training articles."""
        known = {rate: self._grid(arm, rate) for rate in (FIRST_RATE, 2 * FIRST_RATE)}
        factor = 2.0 if known[2 * FIRST_RATE] < known[FIRST_RATE] else 0.5
        best = min(known, key=lambda rate: known[rate])
        while best * factor not in known:
            known[best * factor] = self._grid(arm, best * factor)
            best = min(known, key=lambda rate: known[rate])
        print(f"{arm.name}: learning rate {best:g} of {known}", flush=True)
        return best

    def _grid(self, arm: Arm, rate: float) -> float:
        folder = self.out / "grid" / f"{slug(arm.name)}-{rate:g}"
        finished = folder / "perplexity.json"
        if not finished.exists():
            settings = arm.settings(GRID_SEED, rate)
            summary = self._simulate(settings, folder, train="rest", test="held", rounds=GRID_ROUNDS)
            write_file(finished, json.dumps(summary.perplexity_after).encode())
        found: float = json.loads(finished.read_bytes())
        return found

    def _simulate(self, settings: Settings, folder: Path, *, train: str, test: str, rounds: int) -> SimulationSummary:
        federation = Federation(
            model_dir=self.model,
            data=self.out / f"{train}.jsonl",
            test=self.out / f"{test}.jsonl",
            settings=settings,
            devices=DEVICES,
            rounds=rounds,
            alpha=None,
            memory_budgets=(2**31,),
            eval_every=2,
        )
        return simulate.run(federation, out=folder, on_round=lambda line: print(f"{folder.name}: {line.line()}"))

    def measure(self, arm: Arm, seed: int, rate: float) -> dict[str, Any]:
        """One federation, and what it learned."""
        folder = self.out / f"{slug(arm.name)}-{seed}"
        finished = folder / "measured.json"
        if finished.exists():
            found: dict[str, Any] = json.loads(finished.read_bytes())
            return found
        summary = self._simulate(arm.settings(seed, rate), folder, train="train", test="test", rounds=arm.rounds)
        result: dict[str, Any] = {
            "method": arm.name,
            "seed": seed,
            "learning_rate": rate,
            "perplexity_before": summary.perplexity_before,
            "rounds": [round_of(line) for line in summary.rounds],
            "predicted_peak_bytes": summary.predicted_peak_bytes,
        }
        if seed == 0 and self.write:
            result |= self.headlines(folder, arm.rounds)
        print(f"{arm.name}, {seed}: {result['rounds']}", flush=True)
        write_file(finished, json.dumps(result, indent=1).encode())
        return result

    def headlines(self, folder: Path, rounds: int) -> dict[str, Any]:
        """Greedy headlines of the last state and of the base model, and their ROUGE-L."""
        examples = load_examples(self.out / "test.jsonl", label_column=None, prompt=SETTINGS.prompt)
        answers = generate.run(
            machine=Machine(self.model),
            plan=folder / "plan",
            state=folder / "states" / f"{rounds:04d}",
            prompts=examples,
            sampling=Sampling(NEW_TOKENS),
            before=True,
        )
        wanted = [as_fields(example)["output"] for example in examples]
        return {
            "rouge_l": mean_rouge([answer.after for answer in answers], wanted),
            "rouge_l_before": mean_rouge([answer.before or "" for answer in answers], wanted),
            "texts": [(text, one.before, one.after) for text, one in zip(wanted[:3], answers[:3], strict=True)],
        }


def articles(folder: Path) -> Iterator[dict[str, str]]:
    """Each article once: its first line is the headline."""
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.txt")):
        headline, *lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        body = " ".join(line for line in lines if line)
        if headline and body and body not in seen:
            seen.add(body)
            yield {"instruction": INSTRUCTION, "input": " ".join(body.split()[:WORDS]), "output": headline}


def slug(name: str) -> str:
    """For a folder."""
    return name.replace(", ", "-").replace(" ", "").replace("'", "")


def round_of(line: RoundLine) -> dict[str, Any]:
    """Perplexity and costs of one round: passes per text, bytes that a device sends, its seconds."""
    return {
        "perplexity": line.perplexity,
        "passes": line.per_text,
        "bytes_up": line.bytes_up / line.devices,
        "seconds": line.seconds / line.devices,
    }


def mean_rouge(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean ROUGE-L."""
    return float(np.mean([rouge_l(text, [(reference,)]) for text, reference in zip(found, wanted, strict=True)]))


COLUMNS = (
    "learning rate",
    "perplexity, 2 rounds",
    "4 rounds",
    "equal passes",
    "passes",
    "MiB sent",
    "ROUGE-L",
    "seconds",
)


def rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """A row an arm: mean and range over seeds; passes, bytes and seconds of a device in all its rounds."""
    first = results[0]
    yield (
        "before",
        "",
        "",
        "",
        spread([first["perplexity_before"]]),
        "",
        "",
        f"{first.get('rouge_l_before', float('nan')):.3f}",
        "",
    )
    for arm in ARMS:
        runs = [result for result in results if result["method"] == arm.name]
        if runs:
            yield (
                f"{arm.name} ({len(runs)} seeds)",
                f"{runs[0]['learning_rate']:g}",
                *(spread([run["rounds"][place]["perplexity"] for run in runs]) for place in (1, 3, -1)),
                f"{np.mean([total(run, 'passes') for run in runs]):.0f}",
                f"{np.mean([total(run, 'bytes_up') for run in runs]) / 2**20:.1f}",
                f"{runs[0].get('rouge_l', float('nan')):.3f}",
                spread([total(run, "seconds") for run in runs], digits=0),
            )


def total(run: dict[str, Any], what: str) -> float:
    """Over the rounds of a run."""
    return float(sum(line[what] for line in run["rounds"]))


def spread(values: Sequence[float], *, digits: int = 1) -> str:
    """`21.4 (20.9 to 22.0)`."""
    middle = f"{np.mean(values):.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def examples_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs whose texts were kept."""
    return [result for result in results if "texts" in result]


def written(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row a headline: the BBC's, before, and after each method."""
    kept = examples_of(results)
    for number in range(3):
        texts = [result["texts"][number] for result in kept]
        yield (texts[0][0], one_line(texts[0][1]), *(one_line(after) for _, _, after in texts))


def one_line(text: str) -> str:
    """For a cell of a table."""
    return " / ".join(line.strip() for line in text.splitlines() if line.strip())


if __name__ == "__main__":
    main()
