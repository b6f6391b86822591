"""Export as a Hugging Face folder: base weights, adapters, and the code that combines them.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Weights are copied block by block, with one layer in memory at a time: as stored where the plan computes in float32,
else rounded to the dtype that computes.  The configuration names the dtype that computes; so the loaded model gives the
same values as the stages, to the bit but where a processor's library splits sums (ADR 9).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.plan import PlanManifest
from stages.export import modeling
from stages.model.backbone import Backbone
from stages.store.foreign import read_document, read_json
from stages.tuning.tensors import SUFFIXES
from stages.tuning.tuning import BottleneckTuning
from stages.weights.files import StoredTensor
from stages.weights.reader import Weights, new_arena
from stages.weights.writer import Entry, entry_of, group, shard_name, write_index, write_shard

ROWS = 4096
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
LOADER = {"causal-lm": "AutoModelForCausalLM", "text-classification": "AutoModelForSequenceClassification"}
ADAPTERS = "chainctl_adapters"


def write_folder(
    folder: Path,
    *,
    model_dir: Path,
    backbone: Backbone,
    plan: PlanManifest,
    tuning: BottleneckTuning,
    pad_id: int,
) -> None:
    """Write configuration, code, tokenizer and weights into `folder`, which is one of `complete_directory`.

    `tuning`: that of the state, float32.
    """
    name = f"{type(backbone.skeleton.model).__name__}WithAdapters"
    config = configuration(model_dir, backbone, plan, name=name, pad_id=pad_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    mean_head = backbone.skeleton.head_form == "mean"
    code = modeling.source(type(backbone.skeleton.model).__name__, name, mean_head=mean_head)
    (folder / modeling.FILE).write_text(code, encoding="utf-8")
    for file in TOKENIZER_FILES:
        if (model_dir / file).exists():
            (folder / file).write_bytes(read_document(model_dir / file))
    write_weights(folder, list(entries(backbone, tuning)))


def configuration(model_dir: Path, backbone: Backbone, plan: PlanManifest, *, name: str, pad_id: int) -> dict[str, Any]:
    """The base model's configuration, with what the adapters need."""
    task = plan.settings.task
    config: dict[str, Any] = read_json(model_dir / "config.json")
    for gone in ("torch_dtype", "quantization_config", "auto_map", "num_labels", "problem_type"):
        config.pop(gone, None)
    config |= {
        "architectures": [name],
        "auto_map": {LOADER[task.kind]: f"{modeling.FILE.removesuffix('.py')}.{name}"},
        "dtype": plan.settings.numerics.computes_in,
        "pad_token_id": pad_id,
        "chainctl": {
            "layers": backbone.skeleton.layer_prefix,
            "adapter_layers": list(range(plan.decisions.first_layer, plan.model.num_layers)),
            "bottleneck": plan.bottleneck,
            "activation": plan.settings.adapter.activation,
        },
    }
    if task.labels:
        config["id2label"] = {str(index): label for index, label in enumerate(task.labels)}
        config["label2id"] = {label: index for index, label in enumerate(task.labels)}
    return config


def entries(backbone: Backbone, tuning: BottleneckTuning) -> Iterator[Entry]:
    """Every tensor of the exported model, by its name in the architecture."""
    skeleton, reader = backbone.skeleton, backbone.reader
    head = trained_head(backbone, tuning)
    yield table_entry(backbone, skeleton.embedding_name, reader.names.embeddings.sources[0][0])
    inner, done = f"{skeleton.layer_prefix}.", {skeleton.embedding_name, *skeleton.model.all_tied_weights_keys}
    for name in skeleton.state_names:
        if name.startswith(inner) or name in done:  # the loader ties these again
            continue
        if name in skeleton.output_names:
            yield table_entry(backbone, name, reader.output_rows())
        else:
            yield entry_of(name, head.pop(name, skeleton.model.get_parameter_or_buffer(name)))
    yield from (entry_of(name, value) for name, value in head.items())
    source = LayerSource(backbone)
    for layer in range(backbone.num_layers):
        yield from source.entries(layer)
    for layer, adapter in sorted(tuning.adapters.items()):
        for value, suffix in zip(adapter.parameters(), SUFFIXES, strict=True):
            yield entry_of(f"{ADAPTERS}.{layer}.{suffix}", value.to(backbone.dtype))


def trained_head(backbone: Backbone, tuning: BottleneckTuning) -> dict[str, Tensor]:
    """The trained head, in the dtype that it computes in: a mean head stays in float32."""
    dtype = torch.float32 if backbone.skeleton.head_form == "mean" else backbone.dtype
    return {name: value.to(dtype) for name, value in tuning.head.items()}


def table_entry(backbone: Backbone, name: str, table: StoredTensor) -> Entry:
    """A table (V, D), read a few rows at a time."""

    def blocks() -> Iterator[Tensor]:
        arena = new_arena(ROWS * (table.size // table.shape[0]))
        for first in range(0, table.shape[0], ROWS):
            rows = backbone.reader.rows(table, first, min(first + ROWS, table.shape[0]), arena)
            yield rows.to(dtype).reshape(-1)

    dtype = written_dtype(backbone.dtype, table.dtype)
    return Entry(name, dtype, table.shape, blocks)


def written_dtype(compute: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """The dtype that a tensor is written in: the smaller of two that give the same values once loaded.

    Half the bits of float32 are not rounded by it, so they stay; numbers that are not floating are never converted.
    """
    exact = compute == torch.float32 and stored.itemsize < compute.itemsize
    return stored if exact or not stored.is_floating_point else compute


class LayerSource:
    """Tensors of layers, with one layer in memory at a time."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._layer = -1
        self._weights: Weights = {}

    def entries(self, layer: int) -> Iterator[Entry]:
        """The tensors of one layer."""
        skeleton = self.backbone.skeleton
        prefix = f"{skeleton.layer_prefix}.{layer}."
        own = skeleton.layers[layer].state_dict()
        stored = {target: load.dtype for load in self.backbone.reader.names.layers[layer] for target in load.targets()}
        for name, value in own.items():
            if prefix + name in stored:  # else a buffer that no checkpoint holds
                dtype = written_dtype(self.backbone.dtype, stored[prefix + name])
                yield Entry(prefix + name, dtype, tuple(value.shape), self._blocks(layer, name, dtype))

    def _blocks(self, layer: int, name: str, dtype: torch.dtype) -> Callable[[], Iterator[Tensor]]:
        def blocks() -> Iterator[Tensor]:
            if self._layer != layer:
                self._weights = {}  # before the next is read
                arena = new_arena(self.backbone.reader.layer_bytes(layer))
                self._layer, self._weights = layer, self.backbone.reader.layer(layer, arena)
            yield from (block.to(dtype) for block in entry_of(name, self._weights[name]).blocks())

        return blocks


def write_weights(folder: Path, found: list[Entry]) -> None:
    """Safetensors files with an index."""
    shards = group(found)
    places: dict[str, str] = {}
    for index, shard in enumerate(shards):
        file = shard_name(index, len(shards))
        write_shard(folder / file, shard)
        places |= {entry.name: file for entry in shard}
    write_index(folder, places, sum(entry.size for entry in found))
