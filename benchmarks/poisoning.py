"""What four liars among twenty devices do to a federation, by the strategy that combines the updates.

    python -m benchmarks.poisoning --out DIR [--workers N]

MiniLM on half of BBC news, 20 devices, Dirichlet 1.0, six rounds of all devices (two cycles of three windows), accuracy
on the other half.  The four train as the others do, and then send something else:

sign-flip     ten times what they learned, backwards
noise         normal noise, ten times as wide, tensor by tensor, as what they learned
label-flip    what they learn from labels that are all moved on by one

The server knows that there may be four, not who.  Artifacts are real, and a run that was stopped is continued by the
same command.  Writes benchmarks/results/poisoning.json and prints a table.  Assets: CHAINCTL_CACHE, or `chainctl assets
get minilm bbc-news`.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import markdown, save
from schemas.errors import BadInput
from schemas.evaluation import EvaluationManifest
from schemas.methods import ChainSettings
from schemas.plan import PlanManifest
from schemas.settings import EncodingSettings, FederationSettings, NumericsSettings, Settings, SimilaritySettings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages import aggregate, eval, plan, profile, train_window
from stages.assets import ASSETS, get_asset
from stages.data.load import Example, label_set, load_labelled
from stages.data.split import holdout_file, split_file, to_jsonl
from stages.demo import ALPHA, DEVICES, MEMORY_BUDGET_BYTES
from stages.demo import SETTINGS as DEMO
from stages.federated.aggregation import Aggregation
from stages.federated.sampling import sample_participants
from stages.methods.registry import server_method
from stages.model.loading import LoadedModel
from stages.session import Machine
from stages.store.artifact import Artifact, new_artifact, open_artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.store.devices import participants
from stages.store.files import write_file

State = Artifact[StateManifest]

ROUNDS = 6
MALICIOUS = 4
STRENGTH = 10
ATTACKS = ("none", "sign-flip", "noise", "label-flip")

# The demo's, but for what makes it quick: 64 tokens, the start layer known, every device each round, one thread a run.
SETTINGS = DEMO.model_copy(
    update={
        "encoding": EncodingSettings(max_length=64),
        "similarity": SimilaritySettings(min_examples=5, max_examples=5),
        "chain": ChainSettings(foresight="adapters", start=2, window_size=2),
        "federation": FederationSettings(devices_per_round="all"),
        "numerics": NumericsSettings(threads=1),
    }
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    began = time.perf_counter()
    arena = Arena(model_dir=get_asset(ASSETS["minilm"], say=print), out=chosen.out)
    arena.prepare(get_asset(ASSETS["bbc-news"], say=print))
    arms = [(attack, strategy) for attack in ATTACKS for strategy in STRATEGIES]
    with ProcessPoolExecutor(chosen.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(partial(fight, arena), *zip(*arms, strict=True)))
    save(
        "poisoning",
        {
            "devices": DEVICES,
            "malicious": arena.malicious(),
            "rounds": ROUNDS,
            "texts": {shard.stem: count_lines(shard) for shard in sorted((arena.out / "shards").iterdir())},
            "accuracy before": arena.accuracy(arena.state(0), LoadedModel.open(arena.model_dir, arena.plan_settings())),
            "arms": [asdict(result) for result in results],
            "seconds": round(time.perf_counter() - began),
        },
    )
    print(table(results))


# --- what the server may do ------------------------------------------------------------------------------------------

STRATEGIES = {
    "weighted-mean": FederationSettings(),
    "coordinate-median": FederationSettings(strategy="coordinate-median"),
    "trimmed-mean": FederationSettings(strategy="trimmed-mean", trim_fraction=MALICIOUS / DEVICES),
    "krum": FederationSettings(strategy="krum", assumed_malicious=MALICIOUS),
    "multi-krum": FederationSettings(strategy="multi-krum", assumed_malicious=MALICIOUS),
    "norm-clipping": FederationSettings(clip_norm="median"),
}


def combine(strategy: str, updates: Sequence[Path], *, plan: Path, state: Path, out: Path) -> State:
    """`aggregate.run` without its intake, which would refuse the longest of these updates, and with a strategy that is
    not the plan's: so all arms share one plan, and what is trained first."""
    planned, parent = open_artifact(plan, PlanManifest), open_artifact(state, StateManifest)
    opened = [open_artifact(path, UpdateManifest) for path in updates]
    accepted = sorted(opened, key=lambda update: update.manifest.device)
    with new_artifact(out, force=True) as draft:
        method = server_method(planned.manifest.settings.chain.method)
        lines = (aggregate.accepted_lines(accepted), sample_participants(planned, parent.manifest.round + 1))
        draft.write_lines(*lines)
        combination = Aggregation(parent, accepted, STRATEGIES[strategy])
        manifest = aggregate.describe(planned, parent, accepted, method, lines, combination)
        draft.finish(aggregate.write_tensors(draft, combination, [parent, *accepted], manifest), None)
    return open_artifact(out, StateManifest)


# --- what the devices do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arena:
    """The federation's files.

    DIR/shards, DIR/flipped       every device's texts; the same with labels moved on
    DIR/plan, DIR/first           the plan and state 0 of every arm
    DIR/first-updates             what is trained on state 0, the same in every arm
    DIR/arms/<attack>/<strategy>  states and updates of an arm, and its result
    """

    model_dir: Path
    out: Path

    def prepare(self, texts: Path) -> None:
        """Split, profile, plan; train on state 0."""
        if not (self.out / "data").exists():
            holdout_file(texts, self.out / "data", fraction=0.5, seed=0, deduplicate=True)
        labels = label_set(load_labelled(self.out / "data" / "train.jsonl", SETTINGS.task))
        settings = SETTINGS.model_copy(update={"task": SETTINGS.task.model_copy(update={"labels": labels})})
        if not (self.out / "shards").exists():
            split_file(self.out / "data" / "train.jsonl", self.out / "shards", devices=DEVICES, alpha=ALPHA, seed=0)
        model = LoadedModel.open(self.model_dir, settings)
        fingerprint = model.backbone.reader.fingerprint()
        profiles = []
        for shard in sorted((self.out / "shards").iterdir()):
            profiles.append(self.out / "profiles" / shard.stem)
            profile.run(
                machine=replace(self.machine(model), memory_budget_bytes=MEMORY_BUDGET_BYTES),
                data=shard,
                settings=settings,
                device=shard.stem,
                out=profiles[-1],
                fingerprint=fingerprint,
            )
            moved_on = dict(zip(labels, labels[1:] + labels[:1], strict=True))
            examples = load_labelled(shard, settings.task)
            flipped = [Example(example.text, moved_on[example.label or ""]) for example in examples]
            write_file(self.out / "flipped" / shard.name, to_jsonl(flipped))
        plan.run(
            profiles,
            model_dir=self.model_dir,
            settings=settings,
            out=self.out / "plan",
            state_out=self.out / "first",
            model=model,
        )
        model = LoadedModel.open(self.model_dir, self.plan_settings())
        for device in participants(self.state(0)):
            self.train(model, self.state(0), device, self.out / "first-updates")
            if device in self.malicious():
                self.train(model, self.state(0), device, self.out / "first-updates", flipped=True)

    def machine(self, model: LoadedModel) -> Machine:
        """One that plays every device."""
        return Machine.simulating(self.model_dir, model, CacheDirectory(self.out / "cache"))

    def plan_settings(self) -> Settings:
        """Those of the plan, all decided."""
        return open_artifact(self.out / "plan", PlanManifest).manifest.settings

    def state(self, number: int, arm: Path | None = None) -> State:
        """State 0 of all, or a later one of an arm."""
        path = self.out / "first" if number == 0 or arm is None else arm / "states" / f"{number:04d}"
        return open_artifact(path, StateManifest)

    def malicious(self) -> list[str]:
        """Every fifth device."""
        return sorted(shard.stem for shard in (self.out / "shards").iterdir())[:: DEVICES // MALICIOUS]

    def train(self, model: LoadedModel, state: State, device: str, out: Path, *, flipped: bool = False) -> Path:
        """An update, trained as it should be on the device's texts, which may be flipped."""
        return train_window.run(
            machine=self.machine(model),
            plan=self.out / "plan",
            state=state.path,
            data=self.out / ("flipped" if flipped else "shards") / f"{device}.jsonl",
            device=device,
            out=out / (f"{device}-flipped" if flipped else device),
        ).path

    def accuracy(self, state: State, model: LoadedModel) -> dict[str, float]:
        """On the other half of the texts, with its interval."""
        evaluation = eval.run(
            machine=self.machine(model),
            plan=self.out / "plan",
            state=state.path,
            data=self.out / "data" / "test.jsonl",
            out=self.out / "evals" / state.digest.removeprefix("sha256:")[:16],
        )
        assert isinstance(evaluation.manifest, EvaluationManifest)
        return evaluation.manifest.accuracy.model_dump()


@dataclass(frozen=True)
class Result:
    """One arm.  `stopped` is the round in which training met a loss that is no number."""

    attack: str
    strategy: str
    accuracy: dict[str, float]
    stopped: int | None


def fight(arena: Arena, attack: str, strategy: str) -> Result:
    """All rounds of one arm."""
    model = LoadedModel.open(arena.model_dir, arena.plan_settings())
    arm = arena.out / "arms" / attack / strategy
    state, stopped = arena.state(0), None
    for number in range(1, ROUNDS + 1):
        target = arm / "states" / f"{number:04d}"
        if not target.exists():
            try:
                updates = list(sent(arena, model, state, attack, arm))
            except BadInput as error:
                print(f"{attack}, {strategy}, round {number}: {error.fact}", flush=True)
                stopped = number
                break
            combine(strategy, updates, plan=arena.out / "plan", state=state.path, out=target)
        state = arena.state(number, arm)
    result = Result(attack, strategy, arena.accuracy(state, model), stopped)
    print(f"{attack:<10}  {strategy:<17}  {result.accuracy['value']:.1%}", flush=True)
    return result


def sent(arena: Arena, model: LoadedModel, state: State, attack: str, arm: Path) -> Iterator[Path]:
    """The updates of a round as they arrive."""
    number = state.manifest.round
    trained = arm / "updates" / f"{number:04d}" if number else arena.out / "first-updates"
    for index, device in enumerate(participants(state)):
        lies = attack != "none" and device in arena.malicious()
        path = arena.train(model, state, device, trained, flipped=lies and attack == "label-flip")
        if lies and attack != "label-flip":
            path = poisoned(path, state, attack, seed=(number, index), out=arm / "sent" / f"{number:04d}" / device)
        yield path


def poisoned(path: Path, state: State, attack: str, *, seed: tuple[int, int], out: Path) -> Path:
    """An update whose tensors are not what was trained, in an artifact that is as it should be."""
    update, before = open_artifact(path, UpdateManifest), read_tensors(state)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, values in read_tensors(update).items():
        change = values.astype(np.float64) - before[name]
        if attack == "sign-flip":
            change = -STRENGTH * change
        else:
            change = random.normal(scale=STRENGTH * change.std(), size=change.shape)
        tensors[name] = (before[name] + change).astype(np.float32)
    with new_artifact(out, force=True) as draft:
        references, files = draft.write_tensors(tensors)
        draft.finish(update.manifest.model_copy(update={"tensors": references, "files": files}), None)
    return out


# --- what comes of it ------------------------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    """A row a strategy, a column an attack; † where training diverged, the last state's accuracy before that."""
    cells = {
        (result.strategy, result.attack): f"{result.accuracy['value']:.1%}" + ("†" if result.stopped else "")
        for result in results
    }
    rows = [(strategy, *(cells[strategy, attack] for attack in ATTACKS)) for strategy in STRATEGIES]
    return markdown(("", *ATTACKS), rows)


def count_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


if __name__ == "__main__":
    main()
