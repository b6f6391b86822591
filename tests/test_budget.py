"""Budgets, checked from outside the process: refused before any work, kept when accepted; peaks that do not grow.

Every peak here is `VmHWM` of a fresh process, read by the test while it runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.harness import read_status
from schemas.methods import default_settings
from schemas.settings import Settings
from stages.model.random_weights import save_word_tokenizer, write_random_model
from stages.process.scratch import medium_of
from tests import fleet
from tests.fleet import ROOT

MIB = 2**20
LAYERS = int(os.environ.get("CHAINCTL_TEST_LAYERS", "12"))
SLACK_MIB = 25  # two processes of the same work differ by a few; a leak of what is tested here would be more


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout as JSON, and the peak in MiB."""

    code: int
    answer: dict[str, Any]
    peak_mib: int


def outside(*arguments: object) -> Outcome:
    """Run a command and watch what it uses."""
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "chainctl", *map(str, arguments), "--json"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            peak = max(peak, read_status(process.pid).get("VmHWM", 0))
            time.sleep(0.01)
        output.seek(0)
        text = output.read()
    return Outcome(process.returncode, json.loads(text) if text else {}, peak)


@dataclass
class Bench:
    """A model, texts, a plan; window 1-2 of its layers trains."""

    folder: Path

    @classmethod
    def prepare(
        cls,
        folder: Path,
        *,
        layers: int,
        texts: int,
        stored: str = "float32",
        method: str = "chain",
        batch: int = 8,
        steps: int | str = "epochs",
    ) -> "Bench":
        """A random BERT-base of some layers."""
        write_random_model("bert-base", folder / "model", layers=layers, dtype=stored)
        chosen = fleet.settings(
            encoding={"max_length": 32},
            similarity={"max_examples": 5},
            chain={"start": 1},
            numerics={"micro_batch": 2, "threads": 1, "compute": "float32"},
            optimizer={"batch_size": batch, "steps": steps},
        )
        if method != "chain":
            chosen = chosen.model_copy(update={"chain": default_settings(method)})
        return cls.begin(folder, chosen, texts=texts)

    @classmethod
    def begin(cls, folder: Path, chosen: Settings, *, texts: int, words: int = 40) -> "Bench":
        """The model in `folder`, with texts of so many words."""
        rows = [
            {
                "text": " ".join(f"w{5 + (index * 31 + place) % 900}" for place in range(words)),
                "label": fleet.LABELS[index % 2],
            }
            for index in range(texts)
        ]
        data = fleet.save_texts(folder / "data.jsonl", rows)
        fleet.begin(folder, folder / "model", data, chosen)
        return cls(folder)

    def inputs(self) -> list[object]:
        """Arguments of train-window but for the output."""
        places = ["--model", self.folder / "model", "--plan", self.folder / "plan", "--state", self.folder / "state"]
        return ["train-window", *places, "--data", self.folder / "data.jsonl", "--device", "one"]

    def train(self, out: str, budget: str) -> Outcome:
        return outside(*self.inputs(), "--out", self.folder / out, "--memory-budget", budget)

    @cached_property
    def smallest(self) -> int:
        """The smallest budget, in MiB, that a refusal names."""
        refused = self.train("never", "1MiB")
        assert refused.code == 5
        assert not (self.folder / "never").exists()
        return int(refused.answer["error"]["values"]["smallest budget that fits"].split()[0])

    @cached_property
    def free(self) -> Outcome:
        """Trained with room for everything."""
        return self.train("free", "8GiB")

    @cached_property
    def tight(self) -> Outcome:
        """Trained with the smallest budget."""
        return self.train("tight", f"{self.smallest}MiB")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.prepare(tmp_path_factory.mktemp("bench"), layers=6, texts=16)


def test_a_budget_below_the_floor_is_refused_before_any_work(bench: Bench) -> None:
    refused = bench.train("refused", f"{bench.smallest - 20}MiB")
    assert refused.code == 5
    assert not (bench.folder / "refused").exists()
    assert refused.peak_mib < bench.smallest


def test_a_budget_just_above_the_floor_is_kept_and_gives_the_same_update(bench: Bench) -> None:
    assert (bench.tight.code, bench.free.code) == (0, 0)
    assert bench.tight.peak_mib <= bench.smallest
    assert bench.tight.answer["digest"] == bench.free.answer["digest"]
    assert bench.tight.peak_mib < bench.free.peak_mib


def test_the_prediction_is_near_what_the_kernel_reports(bench: Bench) -> None:
    for outcome in (bench.free, bench.tight):
        predicted = outcome.answer["predicted_peak_bytes"] / MIB
        assert abs(predicted - outcome.peak_mib) <= 0.15 * outcome.peak_mib


def test_weights_in_half_the_bytes_need_half_their_memory(bench: Bench, tmp_path: Path) -> None:
    """A layer has 13.5 MiB less in bfloat16, though float32 computes; with room, two or three are there at once."""
    half = Bench.prepare(tmp_path, layers=6, texts=16, stored="bfloat16")
    assert half.tight.code == 0
    assert half.tight.peak_mib <= half.smallest
    assert half.tight.answer["digest"] == half.free.answer["digest"]
    for outcome in (half.free, half.tight):
        predicted = outcome.answer["predicted_peak_bytes"] / MIB
        assert abs(predicted - outcome.peak_mib) <= 0.15 * outcome.peak_mib
    assert half.free.peak_mib <= bench.free.peak_mib - 2 * 13.5 + SLACK_MIB / 2


VOCABULARY = 4096  # two chunks of the language head
LANGUAGE: dict[str, dict[str, Any]] = {
    "encoding": {"max_length": 128},
    "similarity": {"max_examples": 5},
    "chain": {"start": 1},
    "numerics": {"micro_batch": 4, "threads": 1, "compute": "float32"},
    "optimizer": {"batch_size": 4},
}


def test_the_smallest_budget_is_kept_where_the_model_caps_its_logits(tmp_path: Path) -> None:
    """Its own logits, their slopes and the graph between: 16 MiB for 512 positions and a chunk of the vocabulary."""
    wide: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
    fleet.save_model(tmp_path / "model", "gemma2", factory=AutoModelForCausalLM, **wide)
    save_word_tokenizer(tmp_path / "model", VOCABULARY)
    bench = Bench.begin(tmp_path, fleet.settings(**fleet.LANGUAGE, **LANGUAGE), texts=8, words=140)
    assert bench.tight.code == 0
    assert bench.tight.peak_mib <= bench.smallest


def test_the_smallest_budget_is_kept_where_a_matrix_is_converted_whole(tmp_path: Path) -> None:
    """Falcon multiplies by another way than `F.linear`: there, 16 MiB of a matrix are there in float32 too."""
    wide: dict[str, Any] = {
        "hidden_size": 1024,
        "ffn_hidden_size": 4096,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
    }
    fleet.save_stored_as(tmp_path / "model", "falcon", torch.bfloat16, factory=AutoModelForCausalLM, **wide)
    save_word_tokenizer(tmp_path / "model", VOCABULARY)
    bench = Bench.begin(tmp_path, fleet.settings(**fleet.LANGUAGE, **LANGUAGE), texts=8, words=140)
    assert bench.tight.code == 0
    assert bench.tight.peak_mib <= bench.smallest


def test_the_peak_does_not_grow_with_the_number_of_layers(bench: Bench, tmp_path: Path) -> None:
    """Six layers more are 162 MiB of weights, 18 are 486."""
    deep = Bench.prepare(tmp_path, layers=LAYERS, texts=16)
    assert deep.free.peak_mib <= bench.free.peak_mib + SLACK_MIB


def test_the_peak_does_not_grow_with_the_number_of_texts(bench: Bench, tmp_path: Path) -> None:
    """400 texts have 38 MiB of hidden states, which go to disk where the budget asks for it."""
    many = Bench.prepare(tmp_path, layers=6, texts=400, steps=2).train("texts", f"{bench.smallest + 5}MiB")
    assert many.code == 0
    assert many.peak_mib <= bench.tight.peak_mib + SLACK_MIB


def test_full_adapters_grow_neither_with_the_layers_nor_with_the_batch(tmp_path: Path) -> None:
    """Layers, adapters, moments and states between layers pass through memory one layer at a time.

    Six layers more have 162 MiB of weights, 8 of adapters with moments, and a batch of 48 has 3 MiB of states a layer.
    """
    small = Bench.prepare(tmp_path / "small", layers=6, texts=8, method="full-adapters")
    large = Bench.prepare(tmp_path / "large", layers=LAYERS, texts=48, method="full-adapters", batch=48)
    for one in (small, large):
        assert one.tight.code == 0
        assert one.tight.peak_mib <= one.smallest
        predicted = one.tight.answer["predicted_peak_bytes"] / MIB
        assert abs(predicted - one.tight.peak_mib) <= 0.15 * one.tight.peak_mib
    assert large.tight.peak_mib <= small.tight.peak_mib + SLACK_MIB
    assert small.free.answer["digest"] == small.tight.answer["digest"]


@pytest.mark.skipif(medium_of(Path("/dev/shm")) != "memory", reason="/dev/shm is not in memory")
def test_what_is_put_away_into_memory_counts(bench: Bench) -> None:
    """6.5 MiB of states, adapters and moments: a budget that is enough with a disk is not enough with a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        inputs = [*bench.inputs(), "--scratch-dir", scratch, "--out", bench.folder / "shared"]
        refused = outside(*inputs, "--memory-budget", f"{bench.smallest - 1}MiB")
        assert refused.code == 5
        assert "tmpfs" in refused.answer["error"]["fact"]
        needed = int(refused.answer["error"]["values"]["smallest budget that fits"].split()[0])
        assert 3 <= needed - bench.smallest <= 10
        kept = outside(*inputs, "--memory-budget", f"{needed}MiB")
    assert kept.code == 0
    assert kept.answer["digest"] == bench.free.answer["digest"]


def test_no_stage_loads_what_it_does_not_use(bench: Bench) -> None:
    """The compiler, sympy and distributed tensors stay out of a training process; the switch lets them in."""
    code = (
        "import sys; sys.argv = ['chainctl', *sys.argv[1:]]\n"
        "from chainctl.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in ('sympy', 'torch._inductor', 'torch.distributed.tensor')"
        " if name in sys.modules])"
    )
    arguments = [*bench.inputs(), "--quiet"]
    for switch, expected in (("", "[]"), ("default", "['sympy', 'torch._inductor', 'torch.distributed.tensor']")):
        run = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments), "--out", str(bench.folder / f"diet{switch}")],
            cwd=ROOT,
            env={**os.environ, "CHAINCTL_IMPORTS": switch},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip().splitlines()[-1] == expected


def test_the_doctor_says_what_fits(bench: Bench) -> None:
    flags = ["--set", "encoding.max_length=32", "--set", "head.form='mean'", "--set", "numerics.micro_batch=2"]
    found = outside("doctor", "--model", bench.folder / "model", *flags, "--memory-budget", "8GiB")
    assert found.code == 0
    assert [fit["window_size"] for fit in found.answer["fits"]] == [1, 2, 3, 4]
    assert all(fit["smallest_bytes"] <= fit["fastest_bytes"] for fit in found.answer["fits"])
    assert {fit["chosen"] for fit in found.answer["fits"]} == {"everything kept"}
    assert found.answer["num_layers"] == 6
    none = outside("doctor", "--model", bench.folder / "model", *flags, "--memory-budget", "10MiB")
    assert none.code == 0
    assert {fit["chosen"] for fit in none.answer["fits"]} == {""}
    two = next(fit for fit in found.answer["fits"] if fit["window_size"] == 2)
    assert abs(two["smallest_bytes"] / MIB - bench.smallest) <= 0.05 * bench.smallest
