"""What a stage needs to run a model, opened once: encoder, backbone, budget, cache, verification, progress.

    machine = Machine(model_dir, memory_budget_bytes=budget)
    with Session.open(machine, plan.settings, expected=plan.model, scratch=folder, progress=progress) as session:
        texts = session.encode(examples)
        placement = session.place(lambda memory, placement: memory.forward(placement), texts, bottleneck=0, what="…")
        … session.backbone …
    facts = session.measured(texts)

The encoder is freed before the backbone is opened: a large vocabulary takes as much memory as a layer.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from schemas.errors import DoesNotFit
from schemas.plan import PlanManifest
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from schemas.state import StateManifest
from stages.data.encode import Encoder
from stages.data.load import Example
from stages.data.prompts import PromptEncoder
from stages.inference.full_chain import FullChain, stop_tokens
from stages.memory.predict import MemoryModel, fit
from stages.methods.registry import device_method
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.process.arithmetic import price
from stages.process.measure import MeasuredFacts, Stopwatch, device_memory_bytes, mebibytes, resident_bytes
from stages.process.progress import Progress, Say, silent, unsaid
from stages.store.artifact import Artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.streaming.placement import FASTEST, Placement
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning
from stages.weights.files import FLOAT_DTYPES
from stages.weights.reader import Verify

PredictPeak = Callable[[MemoryModel, Placement], int]


@dataclass(frozen=True)
class Machine:
    """Where a stage runs: its base model, and the resources that a stage may use.

    A simulating machine runs many devices in one process: they share an opened model, and no device's budget is
    enforced.
    """

    model_dir: Path
    memory_budget_bytes: int | None = None  # None: the memory of the machine or its control group
    verify: Verify = "once"
    cache: CacheDirectory | None = None
    shared: LoadedModel | None = None

    @classmethod
    def simulating(cls, model_dir: Path, shared: LoadedModel, cache: CacheDirectory | None = None) -> "Machine":
        """A machine that runs many devices with one model that is already open."""
        return cls(model_dir, cache=cache, shared=shared)

    @property
    def simulates(self) -> bool:
        """Whether this process runs many devices."""
        return self.shared is not None

    @property
    def budget_bytes(self) -> int:
        """The memory budget, by default all memory; not enforced in a simulation."""
        return self.memory_budget_bytes or device_memory_bytes()


@dataclass
class Session:
    """One stage's work with one model.  `predicted_peak_bytes` is None before `place`, and in simulations."""

    machine: Machine
    settings: Settings
    expected: ModelFingerprint | None
    scratch: Path
    progress: Progress
    watch: Stopwatch
    pad_id: int | None = None
    predicted_peak_bytes: int | None = None
    _bytes_before: int = field(default=0)

    @classmethod
    @contextmanager
    def open(
        cls,
        machine: Machine,
        settings: Settings,
        *,
        expected: ModelFingerprint | None,
        scratch: Path,
        progress: Progress = silent,
        say: Say = unsaid,
    ) -> Iterator["Session"]:
        """Measure time and memory, and enforce the budget, while the block runs.

        `expected` is the fingerprint that the model must match; `scratch` is the folder for unnamed temporary files;
        `say` is told what an emulated dtype costs here, except by a machine that simulates.  Raises `DoesNotFit` at the
        next progress step after the process exceeds its budget.
        """
        emulated = "" if machine.simulates else price(settings.numerics.computes_in)
        if emulated:
            say(f'the plan computes in {emulated} (a new plan with numerics.compute = "auto" avoids it)')
        with Stopwatch(None if machine.simulates else machine.budget_bytes) as watch:
            torch.set_num_threads(settings.numerics.threads)
            yield cls(machine, settings, expected, scratch, watch.over(progress), watch)

    def encoder(self) -> Encoder:
        """The model's encoder, by the session's settings.  Raises `BadInput`."""
        shared = self.machine.shared
        encoder = (
            shared.encoder
            if shared
            else Encoder.load(self.machine.model_dir, self.settings.encoding, self.settings.prompt)
        )
        self.pad_id = encoder.pad_id
        return encoder

    def encode(self, examples: Sequence[Example]) -> EncodedTexts:
        """Token ids of the examples, in order.  Raises `BadInput`."""
        return EncodedTexts.encode(examples, self.encoder(), self.settings.numerics.rows)

    @cached_property
    def backbone(self) -> Backbone:
        """The model, opened on first use.  Raises `BadInput`, and `NotTrusted` if it is not the `expected` one."""
        if self.machine.shared:
            backbone = self.machine.shared.backbone
            assert backbone.dtype == FLOAT_DTYPES[self.settings.numerics.computes_in]
        else:
            pad_id = self.encoder().pad_id if self.pad_id is None else self.pad_id
            backbone = Backbone.open(
                self.machine.model_dir,
                self.settings,
                pad_id=pad_id,
                expected=self.expected,
                verify=self.machine.verify,
                cache=self.machine.cache,
            )
        self._bytes_before = backbone.reader.files.bytes_read
        return backbone

    def place(
        self,
        predict: PredictPeak,
        texts: EncodedTexts,
        *,
        bottleneck: int,
        what: str,
        scratch: PredictPeak = lambda memory, placement: 0,
    ) -> Placement:
        """What to keep in memory: the fastest choice whose predicted peak is within budget.  Raises `DoesNotFit`.

        `what` names the work in the error; `scratch` predicts the bytes of its temporary files, which must fit the
        disk.
        """
        if self.machine.simulates:
            return FASTEST
        memory = MemoryModel(
            self.backbone, self.settings, bottleneck, texts.token_count, resident_bytes(), max(texts.lengths)
        )
        placement, peak = fit(lambda choice: predict(memory, choice), self.machine.budget_bytes, what=what)
        self.predicted_peak_bytes = max(peak, self.predicted_peak_bytes or 0)
        self._check_scratch(scratch(memory, placement), what)
        return placement

    def _check_scratch(self, needed_bytes: int, what: str) -> None:
        """Refuse work whose temporary files do not fit, before it begins.  Raises `DoesNotFit`."""
        folder = next(place for place in (self.scratch, *self.scratch.absolute().parents) if place.exists())
        free_bytes = shutil.disk_usage(folder).free
        if needed_bytes > free_bytes:
            raise DoesNotFit(
                f"the temporary files of {what} do not fit the disk",
                values={"needed": mebibytes(needed_bytes), "free": mebibytes(free_bytes), "folder": self.scratch},
                hint="free some space, put --out on another disk, or give a larger --memory-budget",
            )

    def tuning(self, plan: PlanManifest, state: Artifact[StateManifest]) -> Tuning:
        """The tuning that the plan's method applies under a state.  Raises `NotTrusted` for altered tensors."""
        method = device_method(plan.settings.chain.method)
        return method.tuning(plan, read_tensors(state, *method.reads), self.backbone.dtype)

    def chain(self, plan: PlanManifest, state: Artifact[StateManifest]) -> FullChain:
        """The full tuned model.  From now on its encoder does not truncate."""
        encoder = self.encoder()
        return FullChain(
            backbone=self.backbone,
            tuning=self.tuning(plan, state),
            plan=plan,
            encoder=PromptEncoder.of(encoder),
            stop_ids=stop_tokens(self.machine.model_dir),
            scratch=self.scratch,
            budget_bytes=self.machine.budget_bytes,
            progress=self.progress,
        )

    def measured(
        self, texts: EncodedTexts | None = None, *, layer_seconds: tuple[float, ...] = (), predicted: int | None = None
    ) -> MeasuredFacts:
        """The costs of the work, after the block; `predicted` overrides the peak that `place` predicted."""
        read = self.backbone.reader.files.bytes_read if "backbone" in self.__dict__ else 0
        return MeasuredFacts(
            seconds=self.watch.seconds,
            predicted_peak_bytes=self.predicted_peak_bytes if predicted is None else predicted,
            peak_bytes=self.watch.peak_bytes,
            bytes_streamed=read - self._bytes_before,
            texts=texts.counts() if texts else None,
            layer_seconds=layer_seconds,
        )
