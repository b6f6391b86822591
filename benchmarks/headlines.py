"""A small language model learns to write the BBC's headlines, on twenty devices that keep their articles.

    python -m benchmarks.headlines --out DIR [--seeds N] [--rounds N]

SmolLM2-135M-Instruct (bfloat16) on BBC news: the prompt is the first fifty words of an article, the response its
headline, in the model's own chat template.  20 devices (IID), two of them a round, ten steps of AdamW on batches of
four, loss on the headline only.  The chain with Q = 2, 3 and 4 over the last four layers, full adapters end to end,
and the chain from where FOAT with the paper's T = 0.8 starts; each with several seeds (of the split, the fresh
adapters and who takes part).  On 100 held-out articles: perplexity of the headline, and ROUGE-L of greedy headlines.

Compute is counted in passes of a token through a layer: one forward, and one more backward through a frozen layer.
A run that was stopped is continued by the same command.  Writes benchmarks/results/headlines.json and prints tables.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import call, markdown, save
from schemas.methods import ChainSettings, FullAdaptersSettings, MethodSettings
from schemas.plan import PlanManifest
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
from stages.methods.registry import server_method
from stages.session import Machine
from stages.store.artifact import open_artifact
from stages.store.files import write_file
from stages.suites.scores import rouge_l

DEVICES, TEST, WORDS, NEW_TOKENS = 20, 100, 50, 24
INSTRUCTION = "Write a short headline for this news article."
SETTINGS = Settings(
    task=TaskSettings(kind="causal-lm"),
    prompt=PromptSettings(format="alpaca"),
    encoding=EncodingSettings(max_length=144),
    similarity=SimilaritySettings(max_examples=8, min_examples=5),
    optimizer=OptimizerSettings(learning_rate=1e-3, steps=10, batch_size=4),
    numerics=NumericsSettings(compute="bfloat16", threads=1),
    federation=FederationSettings(devices_per_round=2),
)
METHODS: dict[str, MethodSettings] = {
    "chain, Q = 2, layers 26 to 29": ChainSettings(window_size=2, start=26),
    "chain, Q = 3, layers 26 to 29": ChainSettings(window_size=3, start=26),
    "chain, Q = 4, layers 26 to 29": ChainSettings(window_size=4, start=26),
    "full adapters": FullAdaptersSettings(),
    "chain, Q = 2, start by FOAT with T = 0.8": ChainSettings(window_size=2, cka_threshold=0.8),
}


def main() -> None:
    """Run every method with every seed, then say what each state writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    bench = Bench.prepared(options.out, options.rounds)
    results = []
    for seed in range(options.seeds):
        for name, chain in METHODS.items():
            if seed and "FOAT" in name:
                continue  # once is enough to see it
            results.append(bench.measure(name, chain, seed))
            save("headlines", {"settings": SETTINGS.model_dump(mode="json"), "runs": results})
    print(markdown(("", *COLUMNS), list(rows(results))))
    print()
    print(markdown(("the BBC's", "before", *(one["method"] for one in examples_of(results))), list(written(results))))


@dataclass(frozen=True)
class Bench:
    """Where the model and the texts lie."""

    out: Path
    model: Path
    rounds: int

    @classmethod
    def prepared(cls, out: Path, rounds: int) -> "Bench":
        """Get model and articles, and write the records."""
        model = out / "model"
        if not model.exists():
            call("model", "import", next(get_asset(ASSETS["smollm2-135m"]).glob("*.gguf")), "--out", model)
        if not (out / "train.jsonl").exists():
            records = list(articles(get_asset(ASSETS["bbc-news"])))
            random.Random(0).shuffle(records)
            for name, part in (("test", records[:TEST]), ("train", records[TEST:])):
                lines = "".join(json.dumps(record) + "\n" for record in part)
                write_file(out / f"{name}.jsonl", lines.encode())
        return cls(out, model, rounds)

    def measure(self, name: str, chain: MethodSettings, seed: int) -> dict[str, Any]:
        """One federation, and what it learned."""
        folder = self.out / f"{name.replace(', ', '-').replace(' ', '')}-{seed}"
        finished = folder / "measured.json"
        if finished.exists():
            found: dict[str, Any] = json.loads(finished.read_bytes())
            return found
        federation = Federation(
            model_dir=self.model,
            data=self.out / "train.jsonl",
            test=self.out / "test.jsonl",
            settings=SETTINGS.model_copy(update={"chain": chain, "seed": seed}),
            devices=DEVICES,
            rounds=self.rounds,
            alpha=None,
            memory_budgets=(2**31,),
            eval_every=max(1, self.rounds // 2),
        )
        summary = simulate.run(federation, out=folder, on_round=lambda line: print(f"{name}, {seed}: {line.line()}"))
        plan = open_artifact(folder / "plan", PlanManifest).manifest
        result: dict[str, Any] = {
            "method": name,
            "seed": seed,
            "start_layer": plan.decisions.first_layer,
            "perplexity": {0: summary.perplexity_before}
            | {line.round: line.perplexity for line in summary.rounds if line.perplexity is not None},
            "layer_passes": [passes(plan, index % len(plan.memory)) for index in range(self.rounds)],
            "train_seconds": sum(line.seconds for line in summary.rounds),
            "bytes_up": summary.bytes_up,
            "predicted_peak_bytes": summary.predicted_peak_bytes,
        }
        result |= self.headlines(folder, before=seed == 0)
        print(f"{name}, {seed}: {result['perplexity']} ROUGE-L {result['rouge_l']:.4f}", flush=True)
        write_file(finished, json.dumps(result, indent=1).encode())
        return result

    def headlines(self, folder: Path, *, before: bool) -> dict[str, Any]:
        """Greedy headlines of the last state and, where asked, of the base model; and their ROUGE-L."""
        examples = load_examples(self.out / "test.jsonl", label_column=None, prompt=SETTINGS.prompt)
        answers = generate.run(
            machine=Machine(self.model),
            plan=folder / "plan",
            state=folder / "states" / f"{self.rounds:04d}",
            prompts=examples,
            sampling=Sampling(NEW_TOKENS),
            before=before,
        )
        wanted = [as_fields(example)["output"] for example in examples]
        found: dict[str, Any] = {"rouge_l": mean_rouge([answer.after for answer in answers], wanted)}
        if before:
            found["rouge_l_before"] = mean_rouge([answer.before or "" for answer in answers], wanted)
            found["texts"] = [
                (text, answer.before, answer.after) for text, answer in zip(wanted[:3], answers[:3], strict=True)
            ]
        return found


def articles(folder: Path) -> Iterator[dict[str, str]]:
    """Each article once: its first line is the headline."""
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.txt")):
        headline, *lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        body = " ".join(line for line in lines if line)
        if headline and body and body not in seen:
            seen.add(body)
            yield {"instruction": INSTRUCTION, "input": " ".join(body.split()[:WORDS]), "output": headline}


def passes(plan: PlanManifest, index: int) -> int:
    """Passes of a token through a layer in one round: forward to the window's end, and back through the window."""
    costs = server_method(plan.settings.chain.method).costs(plan, plan.memory[index].assignment)
    return costs.forward_passes + costs.backward_passes


def mean_rouge(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean ROUGE-L."""
    return float(np.mean([rouge_l(text, [(reference,)]) for text, reference in zip(found, wanted, strict=True)]))


COLUMNS = ("perplexity, half the rounds", "perplexity, all", "ROUGE-L", "passes a round", "seconds", "predicted peak")


def rows(results: Sequence[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """A row a method: mean and range over seeds."""
    first = results[0]
    yield (
        "before",
        "",
        spread([first["perplexity"][min(first["perplexity"])]]),
        f"{first['rouge_l_before']:.3f}",
        "",
        "",
        "",
    )
    for name in METHODS:
        runs = [result for result in results if result["method"] == name]
        curves = [list(run["perplexity"].values()) for run in runs]
        yield (
            f"{name} ({len(runs)} seeds)",
            spread([curve[1] for curve in curves]),
            spread([curve[-1] for curve in curves]),
            spread([run["rouge_l"] for run in runs], digits=3),
            f"{np.mean([np.mean(run['layer_passes']) for run in runs]):.0f}",
            spread([run["train_seconds"] for run in runs], digits=0),
            f"{max(run['predicted_peak_bytes'] for run in runs) / 2**20:.0f} MiB",
        )


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
