"""A whole federation on one machine, through the same stages and the same artifacts.

Every step leaves an artifact that is complete or absent, and a step whose artifact exists is not done again: the same
command resumes a run that was stopped.  `folder.py` says where things are.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from schemas.errors import UsageProblem
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.run import MOST_ROUNDS, FederationManifest, RoundLine, SimulationSummary, totals
from schemas.settings import Settings
from schemas.state import StateManifest
from stages import plan
from stages.federation.fleet import InThisProcess
from stages.federation.folder import RunFolder
from stages.federation.prepare import Federation, check_texts, claim, profiles, with_labels
from stages.federation.rounds import Rounds, Score
from stages.federation.watcher import Begun
from stages.memory.fits import predictor
from stages.methods.registry import server_method
from stages.methods.windows import peaks_of_windows
from stages.model.loading import LoadedModel
from stages.process import intent
from stages.process.fork import run_in_fork
from stages.process.progress import Progress, silent
from stages.session import Machine
from stages.store.artifact import Artifact, open_artifact, read_manifest
from stages.store.cache_directory import CacheDirectory
from stages.store.files import complete_directory, copy_folder, write_file
from stages.store.output import check_output
from stages.store.trust import isolated_home
from stages.streaming.placement import FASTEST

RoundDone = Callable[[RoundLine], None]


def run(
    federation: Federation,
    *,
    out: Path,
    on_begin: Callable[[Begun], None] = lambda begun: None,
    on_round: RoundDone = lambda line: None,
    progress: Progress = silent,
    like: Path | None = None,
    scratch_dir: Path | None = None,
) -> SimulationSummary:
    """Simulate, or continue to simulate, into `out`.

    `like` is the finished run of another method on the same data: its shards, its profiles (they depend on no method)
    and its cache of hidden states serve this run too.  `scratch_dir`: the folder of temporary files (None: see
    `process.scratch`).  Raises `UsageProblem` where `out` holds a run of something else, and whatever the stages raise.
    """
    if federation.rounds > MOST_ROUNDS:
        raise UsageProblem(
            "these are too many rounds for one summary",
            values={"at most": MOST_ROUNDS, "given": federation.rounds},
            hint="simulate fewer rounds",
        )
    folder = RunFolder(out)
    check_output(folder.federation, force=True)
    if not folder.shards.exists():
        check_texts(federation)
    settings = with_labels(federation)
    model = open_for_profiles(federation.model_dir, settings)  # refuses what cannot run before anything is written
    claim(federation, folder)
    if intent.is_dry_run():
        intend(federation, settings, folder)
    if like is not None:
        borrow(RunFolder(like), folder, federation)
    with isolated_home(out / "home"):
        cache = CacheDirectory((like or out) / "cache", home=(like or out) / "home")
        return _simulate(federation, settings, model, folder, cache, scratch_dir, on_begin, on_round, progress)


def intend(federation: Federation, settings: Settings, folder: RunFolder) -> None:
    """End a dry run with what the run comes to."""
    chosen = settings.federation.devices_per_round
    trains = server_method(settings.chain.method).trains
    intent.expect(
        devices=federation.devices,
        devices_per_round=federation.devices if chosen == "all" else min(chosen, federation.devices),
        rounds=federation.rounds if trains else 0,
        peak_bytes=predicted_peak_bytes(federation, settings, folder),
    )
    intent.will_write(folder.path)
    intent.begin()


def predicted_peak_bytes(federation: Federation, settings: Settings, folder: RunFolder) -> int:
    """Of a device, by the plan; before there is one, as if all layers that may train did, and all stayed in memory."""
    if os.path.lexists(folder.plan):
        planned = open_artifact(folder.plan, PlanManifest).manifest
        return max((one.predicted_peak_bytes for one in planned.memory), default=0)
    memory = predictor(federation.model_dir, settings)
    depth = memory.backbone.num_layers
    first = server_method(settings.chain.method).first_layer(depth)
    return run_in_fork(lambda: peaks_of_windows(memory)(Window(start=first, stop=depth), FASTEST))


def open_for_profiles(model_dir: Path, settings: Settings) -> LoadedModel:
    """The model as profiles read it.  Raises `BadInput`."""
    for_profiles = settings.model_copy(update={"numerics": settings.numerics.computing_in("float32")})
    return LoadedModel.open(model_dir, for_profiles).reading(for_profiles)[1].remembering()


def borrow(like: RunFolder, folder: RunFolder, federation: Federation) -> None:
    """Take shards and profiles from the run of another method.  Raises `UsageProblem` if more differs."""
    theirs, ours = read_manifest(like.federation, FederationManifest), federation.describe()
    with_our_method = theirs.settings.model_copy(update={"chain": ours.settings.chain})
    if theirs.model_copy(update={"settings": with_our_method}) != ours:
        raise UsageProblem(
            f"{like.path} is a run of another federation, not of another method", hint="simulate without it"
        )
    for theirs_of, ours_of in ((like.shards, folder.shards), (like.profiles, folder.profiles)):
        if not ours_of.exists():
            with complete_directory(ours_of, force=False, derived_from=theirs_of) as partial:
                copy_folder(theirs_of, partial)


def _simulate(
    federation: Federation,
    settings: Settings,
    model: LoadedModel,
    folder: RunFolder,
    cache: CacheDirectory,
    scratch_dir: Path | None,
    on_begin: Callable[[Begun], None],
    on_round: RoundDone,
    progress: Progress,
) -> SimulationSummary:
    machine = Machine.simulating(federation.model_dir, model, cache, scratch_dir)
    planned, state = plan.run(
        list(profiles(federation, settings, machine, folder, progress)),
        model_dir=federation.model_dir,
        settings=settings,
        out=folder.plan,
        state_out=folder.state(0),
        model=model,
    )
    opened = LoadedModel.open(federation.model_dir, planned.manifest.settings, expected=planned.manifest.model)
    machine = Machine.simulating(federation.model_dir, opened.remembering(model), cache, scratch_dir)
    federation = replace(federation, rounds=federation.rounds_of(len(planned.manifest.memory)))
    rounds = Rounds(federation, planned, InThisProcess(machine, folder, progress), machine, folder, progress)
    before = rounds.evaluate(0)
    lines: list[RoundLine] = []
    count = federation.rounds if server_method(settings.chain.method).trains else 0
    on_begin(Begun(planned, count, before.accuracy, before.perplexity))
    for _ in range(count):
        state, line = rounds.one(state)
        lines.append(line)
        on_round(line)
    summary = summarise(planned, state, before, lines)
    write_file(folder.summary, summary.readable_bytes())
    return summary


def summarise(
    plan: Artifact[PlanManifest], state: Artifact[StateManifest], before: Score, lines: list[RoundLine]
) -> SimulationSummary:
    """What a run came to; `before` is the score of state 0, `state` the last one."""
    return SimulationSummary(
        plan=plan.digest,
        final_state=state.digest,
        accuracy_before=before.accuracy,
        accuracy_after=lines[-1].accuracy if lines else before.accuracy,
        perplexity_before=before.perplexity,
        perplexity_after=lines[-1].perplexity if lines else before.perplexity,
        rounds=tuple(lines),
        first_layer=plan.manifest.decisions.first_layer,
        assignments=len(plan.manifest.memory),
        **totals(tuple(lines)),
    )
