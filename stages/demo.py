"""The demo: a federation of 20 devices adapts MiniLM to BBC news, beside a linear probe.

Everything is what the commands `assets get`, `data holdout` and `simulate` do; each is printed before it runs.  Like
them, it continues where it was stopped.
"""

import time
from collections.abc import Callable
from pathlib import Path

from schemas.plan import PlanManifest
from schemas.recipe import with_method
from schemas.run import DemoSummary, SimulationSummary
from schemas.settings import (
    EncodingSettings,
    FederationSettings,
    HeadSettings,
    OptimizerSettings,
    Settings,
)
from stages.assets import ASSETS, get_assets
from stages.data.split import holdout_file
from stages.federation.folder import RunFolder
from stages.federation.prepare import Federation
from stages.federation.simulate import run as simulate
from stages.federation.watcher import Watch
from stages.process import intent
from stages.report.figure import curves_svg
from stages.report.tables import format_bytes, markdown_table
from stages.store.artifact import open_artifact
from stages.store.files import write_file
from stages.store.output import check_output

DEVICES = 20
PER_ROUND = 5
ALPHA = 1.0
ROUNDS = 6
MEMORY_BUDGET_BYTES = 2**30

CHAIN, PROBE = "chain, all layers", "linear probe"

Say = Callable[[str], None]

SETTINGS = Settings(
    encoding=EncodingSettings(max_length=96),
    head=HeadSettings(form="mean"),
    optimizer=OptimizerSettings(learning_rate=4e-3, round_decay=0.9),
    federation=FederationSettings(devices_per_round=PER_ROUND),
)


def run(out: Path, *, say: Say, watch: Watch, seed: int = 0) -> DemoSummary:
    """Run it all into `out`: the contents of `out/summary.json`.

    `watch` is asked for a watcher of each simulation.  `seed` decides the shards, the devices of each round, the order
    of texts and the first adapters.
    """
    began = time.perf_counter()
    check_output(RunFolder(out).summary, force=True)
    intent.will_write(out)
    intent.expect(devices=DEVICES, rounds=ROUNDS)
    say("$ chainctl assets get minilm bbc-news")
    model, texts = get_assets([ASSETS["minilm"], ASSETS["bbc-news"]], say=say)
    data = out / "data"
    say(f"$ chainctl data holdout {texts} --fraction 0.2 --drop-duplicates --out {data}")
    if not data.exists():
        sizes = holdout_file(texts, data, fraction=0.2, seed=0, deduplicate=True)
        say(f"{sizes['train']} texts to train on, {sizes['test']} held out, {sizes['dropped']} duplicates dropped")
    fetched = time.perf_counter()
    chain = _simulate("chain", model, out, say, watch, seed)
    probe = _simulate("linear-probe", model, out, say, watch, seed, like=out / "chain")
    plan = open_artifact(out / "chain" / "plan", PlanManifest).manifest
    figure = curves_svg(
        plan.curve,
        accuracy={CHAIN: _accuracies(chain), PROBE: _accuracies(probe)},
    )
    write_file(out / "curves.svg", figure)
    summary = DemoSummary(
        accuracy_before=accuracy(chain.accuracy_before),
        accuracy_after=accuracy(chain.accuracy_after),
        accuracy_linear_probe=accuracy(probe.accuracy_after),
        seconds=time.perf_counter() - began,
        seconds_without_assets=time.perf_counter() - fetched,
        peak_memory_bytes=chain.peak_bytes,
        predicted_peak_memory_bytes=chain.predicted_peak_bytes,
        bytes_up=chain.bytes_up,
        bytes_down=chain.bytes_down,
        final_state=chain.final_state,
    )
    write_file(RunFolder(out).summary, summary.readable_bytes())
    say("")
    for line in _table(chain, probe).split("\n"):
        say(line)
    say("")
    say(f"{summary.seconds:.0f} s; picture: {out / 'curves.svg'}")
    say(f"history: chainctl log {out}/chain/states/{len(chain.rounds):04d}")
    return summary


def _simulate(
    method: str, model: Path, out: Path, say: Say, watch: Watch, seed: int, like: Path | None = None
) -> SimulationSummary:
    """One arm.  Profiles are those of `like`: they depend on no method."""
    say(
        f"$ chainctl simulate --method {method} --devices {DEVICES} --per-round {PER_ROUND} --alpha {ALPHA} "
        f"--rounds {ROUNDS} --set seed={seed} … --out {out / method}"
    )
    federation = Federation(
        model_dir=model,
        data=out / "data" / "train.jsonl",
        test=out / "data" / "test.jsonl",
        settings=with_method(SETTINGS, method).model_copy(update={"seed": seed}),
        devices=DEVICES,
        rounds=ROUNDS,
        alpha=ALPHA,
        whole_cycles=True,
        memory_budgets=(MEMORY_BUDGET_BYTES,),
    )
    with watch() as watcher:
        return simulate(
            federation,
            out=out / method,
            on_begin=watcher.begin,
            on_round=watcher.round,
            progress=watcher.progress,
            like=like,
        )


def accuracy(value: float | None) -> float:
    """Of a run that classifies."""
    assert value is not None
    return value


def _accuracies(summary: SimulationSummary) -> list[float]:
    found = [summary.accuracy_before, *(line.accuracy for line in summary.rounds)]
    return [accuracy for accuracy in found if accuracy is not None]


def _table(chain: SimulationSummary, probe: SimulationSummary) -> str:
    columns = ("", "accuracy before", "after", "peak memory", "predicted", "up", "down")
    rows = []
    for name, summary in ((CHAIN, chain), (PROBE, probe)):
        sizes = [summary.peak_bytes, summary.predicted_peak_bytes, summary.bytes_up, summary.bytes_down]
        accuracies = (f"{summary.accuracy_before:.1%}", f"{summary.accuracy_after:.1%}")
        rows.append((name, *accuracies, *map(format_bytes, sizes)))
    return markdown_table(columns, rows)
