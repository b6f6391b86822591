"""The device's half of a method: what trains on a device, and the tuning that every stage applies under a state.

The defaults suit methods that train consecutive layers with adapters, and the head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from schemas.assignment import Assignment
from schemas.methods import MethodSettings
from schemas.methods.chain import LossWeights
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.state import StateManifest
from stages.memory.predict import MemoryModel
from stages.model.backbone import Backbone
from stages.store.artifact import Artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import prefix_cache
from stages.training.layers import DeviceTexts, LayerTraining
from stages.training.loop import Training
from stages.training.optimizer import HEAD, Optimizer
from stages.training.pages import Pages
from stages.tuning.adapters import Adapter, adapters_from_tensors
from stages.tuning.state_adapters import StateAdapters
from stages.tuning.tensors import LIVE_TENSORS
from stages.tuning.tuning import BottleneckTuning, Tuning


@dataclass(frozen=True)
class Work:
    """A device's work in a round: an assignment under a state, its texts, and what it may keep in memory."""

    backbone: Backbone
    plan: Artifact[PlanManifest]
    state: Artifact[StateManifest]
    assignment: Assignment
    texts: DeviceTexts
    placement: Placement
    scratch: Path
    cache: CacheDirectory | None


@dataclass(frozen=True)
class DeviceMethod:
    """One method, on a device.  `reads`: name prefixes of the state's tensors that a device needs."""

    reads: ClassVar[tuple[str, ...]] = LIVE_TENSORS

    def tuning(self, plan: PlanManifest, tensors: Mapping[str, np.ndarray], dtype: torch.dtype) -> Tuning:
        """The tuning that `eval`, `generate` and `export` apply under a state's `tensors`, computing in `dtype`."""
        return BottleneckTuning.of(plan, tensors, dtype)

    def span(self, chain: MethodSettings, num_layers: int, assignment: Assignment) -> Window:
        """The layers that gradients pass: from the first assigned to the last; none if only the head trains."""
        return assignment.span or Window(start=num_layers, stop=num_layers)

    def open(self, work: Work) -> Training:
        """The training of the assigned layers, ready to start."""
        plan = work.plan.manifest
        span = self.span(plan.settings.chain, plan.model.num_layers, work.assignment)
        return layer_training(work, span, loss_weights=self.loss_weights(plan.settings.chain))

    def numbers(self, work: Work, training: Training) -> dict[str, float]:
        """The numbers that the update reports beside its tensors, by name."""
        return {}

    def loss_weights(self, chain: MethodSettings) -> LossWeights:
        """The weights of Eq. 2; by default one loss, at the end of the span."""
        return LossWeights()

    def peak_bytes(self, memory: MemoryModel, assignment: Assignment, placement: Placement, *, first_layer: int) -> int:
        """Predicted peak in bytes of training an assignment; layers from `first_layer` on have adapters."""
        chain = memory.settings.chain
        span, weights = self.span(chain, memory.backbone.num_layers, assignment), self.loss_weights(chain)
        foresight = weights.downstream > 0 and not weights.through_layers
        return memory.train_layers(
            span, placement, trained=len(assignment.layers), first_layer=first_layer, foresight=foresight
        )

    def scratch_bytes(self, memory: MemoryModel, assignment: Assignment, placement: Placement) -> int:
        """Predicted bytes on disk while an assignment trains."""
        span = self.span(memory.settings.chain, memory.backbone.num_layers, assignment)
        return memory.train_scratch(span, placement, trained=len(assignment.layers))


def layer_training(work: Work, span: Window, *, loss_weights: LossWeights) -> LayerTraining:
    """Trains the assigned layers and the head, with gradients through every layer of `span`."""
    plan, settings = work.plan.manifest, work.plan.manifest.settings
    pages = Pages(None if work.placement.adapters_in_memory else work.scratch)
    optimizer = Optimizer(settings.optimizer, round_number=work.state.manifest.round, pages=pages)
    before = prefix_tuning(work)
    return LayerTraining(
        backbone=work.backbone,
        texts=work.texts,
        span=span,
        before=before,
        tuning=trained_tuning(work, span, optimizer),
        optimizer=optimizer,
        placement=work.placement,
        scratch=work.scratch,
        loss_weights=loss_weights,
        window=work.assignment.span if loss_weights.through_layers else None,
        cache=prefix_cache(work.cache, plan, before, work.texts.encoded),
        keep=(plan.decisions.first_layer, span.start),
    )


def prefix_tuning(work: Work) -> BottleneckTuning:
    """The frozen tuning of a state, which the prefix runs with; one adapter at a time if they are not to stay."""
    plan, dtype = work.plan.manifest, work.backbone.dtype
    if work.placement.adapters_in_memory:
        return BottleneckTuning.of(plan, read_tensors(work.state, *LIVE_TENSORS), dtype)
    return BottleneckTuning(StateAdapters(plan, work.state, dtype), {})


def trained_tuning(work: Work, span: Window, optimizer: Optimizer) -> BottleneckTuning:
    """The tuning of a span and of all layers above it, with what trains given to the optimizer.

    Built a layer at a time, so that each may be put away before the next is read.
    """
    plan, frozen, pages = work.plan.manifest, work.backbone.dtype, optimizer.pages
    activation = plan.settings.adapter.activation
    adapters: dict[int, Adapter] = {}
    for layer in range(max(span.start, plan.decisions.first_layer), plan.model.num_layers):
        stored = adapters_from_tensors(read_tensors(work.state, f"adapters.{layer}."), activation)[layer]
        if layer in work.assignment.layers:
            adapters[layer] = stored.trainable()
            optimizer.add(layer, adapters[layer].parameters())
        else:
            adapters[layer] = stored.frozen(frozen)
            if layer in span.layers:  # those above run together, in the paper's global branch
                pages.add(layer, adapters[layer].parameters())
    head = {
        name.removeprefix("head."): torch.from_numpy(values).clone().requires_grad_()
        for name, values in read_tensors(work.state, "head.").items()
    }
    optimizer.add(HEAD, list(head.values()))
    return BottleneckTuning(adapters, head)
