"""What a stage needs to run a model, opened once: encoder, backbone, budget, cache, verification, progress.

    machine = Machine(model_dir, memory_budget_bytes=budget)
    with Session.open(machine, plan.settings, expected=plan.model, beside=folder, progress=progress) as session:
        texts = session.encode(examples)
        placement = session.place(MemoryModel.forward, MemoryModel.forward_scratch, texts, bottleneck=0, what="…")
        … session.backbone …
    facts = session.measured(texts)

The encoder is freed before the backbone is opened: a large vocabulary takes as much memory as a layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from schemas.measured import LayerPasses
from schemas.plan import PlanManifest
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from schemas.state import StateManifest
from stages.data.encode import Encoder
from stages.data.load import Example
from stages.data.prompts import PromptEncoder
from stages.inference.full_chain import FullChain
from stages.memory.placing import fit_with_files
from stages.memory.predict import MemoryModel
from stages.methods.registry import device_method
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.process import intent
from stages.process.arithmetic import price
from stages.process.measure import MeasuredFacts, Stopwatch, device_memory_bytes, resident_bytes
from stages.process.progress import Progress, Say, silent, unsaid
from stages.process.scratch import scratch_folder
from stages.store.artifact import Artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.streaming.placement import FASTEST, Placement
from stages.streaming.scratch_file import ScratchFile
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning
from stages.weights.files import FLOAT_DTYPES
from stages.weights.reader import Verify

PredictBytes = Callable[[MemoryModel, Placement], int]


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
    scratch_dir: Path | None = None  # of temporary files; None: see `process.scratch`

    @classmethod
    def simulating(
        cls,
        model_dir: Path,
        shared: LoadedModel,
        cache: CacheDirectory | None = None,
        scratch_dir: Path | None = None,
    ) -> "Machine":
        """A machine that runs many devices with one model that is already open."""
        return cls(model_dir, cache=cache, shared=shared, scratch_dir=scratch_dir)

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
    """One stage's work with one model.

    `scratch` is the folder of its unnamed temporary files.  `predicted_peak_bytes` is None before `place`, and in
    simulations.
    """

    machine: Machine
    settings: Settings
    expected: ModelFingerprint | None
    scratch: Path
    progress: Progress
    watch: Stopwatch
    pad_id: int | None = None
    predicted_peak_bytes: int | None = None
    _bytes_before: int = field(default=0)
    _passes_before: LayerPasses = field(default_factory=LayerPasses)
    _written_before: int = field(default_factory=lambda: ScratchFile.scratch_bytes_written)

    @classmethod
    @contextmanager
    def open(
        cls,
        machine: Machine,
        settings: Settings,
        *,
        expected: ModelFingerprint | None,
        beside: Path,
        progress: Progress = silent,
        say: Say = unsaid,
    ) -> Iterator["Session"]:
        """Measure time and memory, and enforce the budget, while the block runs.

        `expected` is the fingerprint that the model must match; temporary files go to the folder of the output,
        `beside`, where the machine names no other and that is not a stick or on a network; `say` is told what an
        emulated dtype costs here, except by a machine that simulates.  Raises `DoesNotFit` at the next progress step
        after the process exceeds its budget.
        """
        cache = machine.cache.path if machine.cache else None
        if cache:
            intent.will_write(cache)
        scratch = scratch_folder(machine.scratch_dir, beside=beside, cache=cache)
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

    def read_up_to_the_limit(self) -> Encoder:
        """Decide what depends on the length where that is `auto`, before a plan is; the encoder that reads so.

        Raises `BadInput`.
        """
        encoder = self.encoder()
        encoding = self.settings.encoding.reading(self.backbone.position_limit)
        numerics = self.settings.numerics.decided(encoding.most_tokens)
        self.settings = self.settings.model_copy(update={"encoding": encoding, "numerics": numerics})
        return encoder.reading(encoding)

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
        self._passes_before = backbone.skeleton.passes.counted()
        return backbone

    def place(
        self, peak: PredictBytes, files: PredictBytes, texts: EncodedTexts, *, bottleneck: int, what: str
    ) -> Placement:
        """What to keep in memory: the fastest choice whose predicted peak is within budget.  Raises `DoesNotFit`.

        `peak` predicts the memory of the work, `files` the size of its temporary files; `what` names it in the error.
        """
        if self.machine.simulates:
            return FASTEST
        memory = MemoryModel(
            self.backbone, self.settings, bottleneck, texts.token_count, resident_bytes(), max(texts.lengths)
        )
        placement, most = fit_with_files(
            lambda choice: peak(memory, choice),
            lambda choice: files(memory, choice),
            scratch=self.scratch,
            budget_bytes=self.machine.budget_bytes,
            what=what,
        )
        self.predicted_peak_bytes = max(most, self.predicted_peak_bytes or 0)
        return placement

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
            stop_ids=encoder.end_ids,
            scratch=self.scratch,
            budget_bytes=self.machine.budget_bytes,
            progress=self.progress,
        )

    def measured(
        self, texts: EncodedTexts | None = None, *, layer_seconds: tuple[float, ...] = (), predicted: int | None = None
    ) -> MeasuredFacts:
        """The costs of the work, after the block; `predicted` overrides the peak that `place` predicted."""
        opened = "backbone" in self.__dict__
        read = self.backbone.reader.files.bytes_read if opened else 0
        passes = self.backbone.skeleton.passes.counted(self._passes_before) if opened else LayerPasses()
        return MeasuredFacts(
            seconds=self.watch.seconds,
            predicted_peak_bytes=self.predicted_peak_bytes if predicted is None else predicted,
            peak_bytes=self.watch.peak_bytes,
            bytes_streamed=read - self._bytes_before,
            bytes_written=ScratchFile.scratch_bytes_written - self._written_before,
            passes=passes,
            texts=texts.counts() if texts else None,
            layer_seconds=layer_seconds,
        )
