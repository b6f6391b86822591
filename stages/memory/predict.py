"""Predict how much memory a stage needs, by running it on tensors that have shapes and no memory.

The forward and backward pass of a micro-batch runs once on the meta device, with the real architecture at the real
size; a dispatch mode adds up the bytes of every storage while it lives.  So no formula per model family is needed for
attention, experts and state spaces.  Added to that peak is what does not depend on the architecture: the interpreter
with torch and transformers, weights, adapters, optimiser moments, hidden states.

A stage has choices that change its memory and not one bit of its result (`Placement`).  `fit` takes the fastest one
within the budget; if there is none it refuses and names the smallest budget that would do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from schemas.errors import DoesNotFit
from schemas.refs import Window
from schemas.settings import Settings
from stages.memory.layers import layer_bytes, meta_weights
from stages.memory.live_bytes import FusedAttention, LiveBytes, meta_like
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.skeleton import Batch
from stages.process.fork import run_in_fork
from stages.process.measure import mebibytes
from stages.streaming.hidden_states import IN_MEMORY_LIMIT_BYTES
from stages.streaming.passing import KEPT_BYTES
from stages.streaming.placement import PLACEMENTS, Placement
from stages.tuning.adapters import Adapter
from stages.tuning.tuning import BottleneckTuning
from stages.weights.reader import Weights

# Resident size of a stage that has imported its libraries and opened a small model, and what the first use of
# torch's kernels adds (code pages, thread stacks, scratch): 20 MiB, and 27 where bfloat16 is multiplied by AMX.
# Measured: `python -m benchmarks.imports` and, at the smallest budget, `python -m benchmarks.memory`.
IMPORT_BASELINE_BYTES = 275 * 2**20
KERNELS_BYTES = 28 * 2**20
BASELINE_VARIES_BYTES = 4 * 2**20  # differs from process to process
FLOAT32_BYTES = 4


def fit(predict: Callable[[Placement], int], budget_bytes: int | None, *, what: str) -> tuple[Placement, int]:
    """The fastest placement whose predicted peak is within the budget, and that peak.  Raises `DoesNotFit`."""
    peaks = run_in_fork(lambda: [predict(placement) for placement in PLACEMENTS])
    for placement, peak in zip(PLACEMENTS, peaks, strict=True):
        if budget_bytes is None or peak <= budget_bytes:
            return placement, peak
    raise DoesNotFit(
        f"{what} does not fit the memory budget",
        values={
            "budget": mebibytes(budget_bytes or 0),
            "smallest budget that fits": mebibytes(min(peaks) + BASELINE_VARIES_BYTES),
        },
        hint="give a larger --memory-budget; a plan with a smaller micro-batch or shorter texts needs less",
    )


@dataclass(frozen=True)
class Live:
    """Live bytes of a pass: what is kept after its forward, and at most (backward included)."""

    kept: int
    peak: int

    def with_inside(self, inner_bytes: int) -> int:
        """The peak where something that takes `inner_bytes` at most comes between forward and backward."""
        return max(self.peak, self.kept + inner_bytes)


@dataclass(frozen=True)
class MemoryModel:
    """Predicts peaks for one model under one set of settings.

    `bottleneck` is r of Eq. 1 (0: no adapters), `tokens` the total over all texts of a device, `baseline_bytes` the
    resident size of a process that has opened the model (None: estimated, for a process on another machine),
    `longest` the number of tokens of the longest text (None: the plan's maximum).
    """

    backbone: Backbone
    settings: Settings
    bottleneck: int
    tokens: int
    baseline_bytes: int | None = None
    longest: int | None = None
    _passed: dict[tuple[tuple[int, ...], bool, bool], Live] = field(default_factory=dict, compare=False, repr=False)

    def train_layers(
        self, span: Window, placement: Placement, *, trained: int, first_layer: int, foresight: bool
    ) -> int:
        """Predicted peak in bytes of a step with gradients through a span: the larger of its phases, prefix and span.

        The adapters of `trained` of its layers train; layers from `first_layer` on have adapters.  With `foresight` the
        adapters above the span run too (the global branch of Eq. 2).
        """
        frozen, one = self._adapter_bytes(self.backbone.dtype.itemsize), self._adapter_bytes(FLOAT32_BYTES)
        moments, depth = self.settings.optimizer.moments, self.backbone.num_layers
        in_hand = trained if placement.adapters_in_memory else min(trained, 1)
        prefix = span_phase = (2 + moments) * one * in_hand  # trained copy, gradient, moments
        if placement.adapters_in_memory:
            prefix += frozen * (depth - min(first_layer, span.start))
            span_phase += frozen * (depth - span.start)
        else:
            prefix += frozen + one  # as it computes, and as it is read
            span_phase += one if self.settings.optimizer.clips else 0  # the gradient that waited
            span_phase += frozen * max(1, depth - span.stop)  # those above the span run together
        prefix += self._prefix_bytes(placement) if span.start > 0 else 0
        span_phase += (1 + moments) * self._head_bytes() + self._table_bytes(placement)
        span_phase += self._span_bytes(span, placement, foresight=foresight)
        return self._resident_bytes(placement) + max(prefix, span_phase)

    def forward_scratch(self, placement: Placement) -> int:
        """Bytes of the unnamed file of hidden states; 0 where they are in memory."""
        return 0 if placement.hidden_in_memory and self._hidden_bytes() else self.tokens * self._token_bytes()

    def train_scratch(self, span: Window, placement: Placement, *, trained: int) -> int:
        """Bytes of the unnamed files of such a step: hidden states, states between layers, adapters and moments."""
        between = pages = 0
        if not (placement.hidden_in_memory or placement.window_resident):
            between = self._batch_bytes() * len(span.layers)
        if not placement.adapters_in_memory:
            waiting = int(self.settings.optimizer.clips)
            pages = (1 + self.settings.optimizer.moments + waiting) * self._adapter_bytes(FLOAT32_BYTES) * trained
            pages += self._adapter_bytes(self.backbone.dtype.itemsize) * (len(span.layers) - trained)
        return self.forward_scratch(placement) + between + pages

    def forward(self, placement: Placement, *, first_layer: int | None = None) -> int:
        """Predicted peak in bytes of `profile` and, with the adapters of a state from `first_layer` on, of `eval`."""
        answers = first_layer is not None  # a profile does not use the head
        adapters = self.backbone.num_layers - first_layer if first_layer is not None else 0
        head = self._head_activations(backward=False) + self._table_bytes(placement) if answers else 0
        passing = max(self._prefix_bytes(placement), head)
        return self._resident_bytes(placement) + adapters * self._adapter_bytes(self.backbone.dtype.itemsize) + passing

    def generate(self, placement: Placement, *, tokens: int, logit_bytes: int) -> int:
        """Predicted peak in bytes of `generate` for a micro-batch of prompts that grow to `tokens` each.

        `logit_bytes`: what the choice of a token takes for each logit.
        """
        rows = self.settings.numerics.rows
        kept = 2 * rows * tokens * self._key_width() * self.backbone.dtype.itemsize  # keys and values of one layer
        arriving = rows * self._length() * self._token_bytes()
        head = LanguageHead.of(self.backbone)
        logits = rows * head.vocabulary * logit_bytes
        adapters = self.backbone.num_layers * self._adapter_bytes(self.backbone.dtype.itemsize)
        passing = self._prefix_bytes(placement) + 2 * arriving + 2 * kept
        asking = head.working_bytes(rows) + logits
        cached = self.backbone.num_layers * kept
        table = self._table_bytes(placement)
        return self._resident_bytes(placement) + adapters + cached + table + max(passing, asking)

    def _key_width(self) -> int:
        """Key width per token in one layer, over all key-value heads; 0 for a model without a KV cache (Mamba)."""
        config = self.backbone.skeleton.config
        if not self.backbone.skeleton.keeps_keys_and_values:
            return 0
        heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        each: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return heads * each

    def _resident_bytes(self, placement: Placement) -> int:
        opened = self.baseline_bytes
        if opened is None:
            opened = IMPORT_BASELINE_BYTES + self._rest_bytes() + self._head_bytes()
        return opened + KERNELS_BYTES + (self._hidden_bytes() if placement.hidden_in_memory else 0)

    def _prefix_bytes(self, placement: Placement) -> int:
        """The layers in memory (two with prefetch), one layer's forward activations, and prepared batches."""
        largest = max(layer_bytes(self.backbone, layer) for layer in range(self.backbone.num_layers))
        passing = self._layers_activations([0], backward=False).peak
        if not placement.prefetch:
            return largest + passing
        # Token ids, mask and positions are int64; the mask that attention takes has a byte for each pair of tokens.
        return 2 * largest + passing + min(KEPT_BYTES, self.tokens * (3 * 8 + self._length()))

    def _span_bytes(self, span: Window, placement: Placement, *, foresight: bool) -> int:
        """The span's weights, and activations of one micro-batch forward and backward."""
        sizes = [layer_bytes(self.backbone, layer) for layer in span.layers]
        above = foresight and span.stop < self.backbone.num_layers
        heads = self._head_activations(backward=True, branches=2 if above else 1)
        heads += self._foresight_bytes(span) if above else 0
        arriving = self._micro_batch_bytes()
        if not sizes:
            return arriving + heads
        if placement.window_resident:
            # The losses are computed while the span's graph is alive; the head's graph is freed again.
            return sum(sizes) + arriving + self._layers_activations(span.layers, backward=True).with_inside(heads)
        one_more = len(sizes) > 1  # layers before the last want its gradient
        graph = self._layers_activations(span.layers[-1:], backward=True, passes_on=one_more)
        carried = self._batch_bytes() * (len(sizes) - 1) if placement.hidden_in_memory else arriving
        in_hand = (2 if placement.prefetch else 1) * max(sizes)
        # The span's output and its gradient are there while the head computes, the graph is not.
        return in_hand + arriving + carried + max(graph.peak, heads + 2 * arriving)

    def _layers_activations(self, layers: Sequence[int], *, backward: bool, passes_on: bool = False) -> "Live":
        """Live bytes of one micro-batch through `layers`, without the weights.  Several placements ask for the same.

        `passes_on`: the gradient with respect to their input is wanted too, by layers before them.
        """
        key = (tuple(layers), backward, passes_on)
        if key not in self._passed:
            self._passed[key] = self._pass(layers, backward=backward, passes_on=passes_on)
        return self._passed[key]

    def _pass(self, layers: Sequence[int], *, backward: bool, passes_on: bool) -> "Live":
        batch = self._batch(backward=backward)
        weights: dict[int, Weights] = {layer: meta_weights(self.backbone, layer) for layer in layers}
        adapters = {layer: self._meta_adapter() for layer in layers} if self.bottleneck else {}
        tuning = BottleneckTuning(adapters, {})
        hidden = torch.empty(
            *batch.input_ids.shape,
            self.backbone.hidden_size,
            dtype=self.backbone.dtype,
            device="meta",
            requires_grad=passes_on,
        )
        live = LiveBytes([hidden] + [tensor for layer in weights.values() for tensor in layer.values()])
        with live, FusedAttention(), torch.set_grad_enabled(backward):
            output = self.backbone.run_layers(weights, hidden, batch, tuning)
            kept = live.now
            if backward:
                output.backward(meta_like(output))
        return Live(kept, live.peak)

    def _foresight_bytes(self, span: Window) -> int:
        """Peak live bytes of the global branch of Eq. 2: the adapters above the span, forward and backward."""
        above = self.backbone.num_layers - span.stop
        if above == 0:
            return 0
        hidden = torch.empty(
            *self._batch(backward=True).input_ids.shape,
            self.backbone.hidden_size,
            dtype=self.backbone.dtype,
            device="meta",
        ).requires_grad_()
        adapters = [self._meta_adapter(trains=False) for _ in range(above)]
        live = LiveBytes([hidden, *(value for adapter in adapters for value in adapter.parameters())])
        with live, torch.enable_grad():
            flowing = hidden
            for adapter in adapters:
                flowing = adapter(flowing)
            flowing.backward(meta_like(flowing))
        return live.peak

    def _head_activations(self, *, backward: bool, branches: int = 1) -> int:
        """Peak live bytes from the last hidden states of a micro-batch to its losses."""
        batch = self._batch(backward=backward)
        hidden = torch.zeros(*batch.input_ids.shape, self.backbone.hidden_size, dtype=self.backbone.dtype)
        live = LiveBytes()
        if self.settings.head_form == "language-model":
            head = LanguageHead.of(self.backbone)
            with live, torch.set_grad_enabled(backward):
                arrived = head.arriving(hidden.requires_grad_(backward), batch)
                kept = live.now  # the graph of the final norm, while the vocabulary passes
                if backward:
                    arrived.sum().backward()
            working = head.working_bytes(branches * batch.input_ids.numel())
            return branches * kept + max(working, live.peak - kept)
        initial = self.backbone.initial_head.items()
        parameters = {name: value.clone().requires_grad_(backward) for name, value in initial}
        with live, torch.set_grad_enabled(backward):
            logits = self.backbone.head(hidden.requires_grad_(backward), batch, parameters)
            if backward:
                logits.sum().backward()
        return live.peak

    def _batch(self, *, backward: bool) -> Batch:
        """The largest micro-batch: all rows at full length."""
        rows = self.settings.numerics.rows
        if backward:
            rows = min(rows, self.settings.optimizer.batch_size)
        ids = torch.zeros(rows, self._length(), dtype=torch.int64)
        return Batch(ids, torch.ones_like(ids))

    def _meta_adapter(self, *, trains: bool = True) -> Adapter:
        r, d = self.bottleneck, self.backbone.hidden_size
        shapes = [(r, d), (r,), (d, r), (d,)]
        dtype = torch.float32 if trains else self.backbone.dtype
        tensors = [torch.empty(shape, dtype=dtype, device="meta", requires_grad=trains) for shape in shapes]
        return Adapter.of(tensors, self.settings.adapter.activation)

    def _table_bytes(self, placement: Placement) -> int:
        if self.settings.head_form != "language-model" or not placement.head_resident:
            return 0
        return LanguageHead.of(self.backbone).table.size

    def _adapter_bytes(self, itemsize: int) -> int:
        r, d = self.bottleneck, self.backbone.hidden_size
        return (2 * r * d + r + d) * itemsize

    def _head_bytes(self) -> int:
        return sum(value.numel() for value in self.backbone.initial_head.values()) * FLOAT32_BYTES

    def _token_bytes(self) -> int:
        return self.backbone.hidden_size * self.backbone.dtype.itemsize

    def _micro_batch_bytes(self) -> int:
        return self._batch(backward=True).input_ids.numel() * self._token_bytes()

    def _batch_bytes(self) -> int:
        return self.settings.optimizer.batch_size * self._length() * self._token_bytes()

    def _length(self) -> int:
        return self.longest or self.settings.encoding.most_tokens

    def _hidden_bytes(self) -> int:
        wanted = self.tokens * self._token_bytes()
        return wanted if wanted <= IN_MEMORY_LIMIT_BYTES else 0

    def _rest_bytes(self) -> int:
        streamed = self.backbone.skeleton.output_names
        loads = [load for load in self.backbone.reader.names.rest if load.target not in streamed]
        return sum(
            math.prod(source.shape) * (self.backbone.dtype if source.dtype.is_floating_point else source.dtype).itemsize
            for load in loads
            for source, _ in load.sources
        )
