"""Is this architecture one that block-wise execution gets right?  Tried on a tiny random model of it.

The tiny model has the same architecture with a few narrow layers.  It is saved as transformers saves it, streamed
layer by layer as every stage streams, and compared with its own forward, right- and left-padded, embedding to
logits.  An architecture that differs is refused: an unknown one is refused, never wrong.
"""

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import BadInput, ChainError
from schemas.settings import HeadForm, HeadSettings, Settings, TaskSettings
from stages.model.architecture import (
    FACTORIES,
    check_head,
    find_layers,
    has_classification_head,
    is_decoder,
    load_config,
)
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.skeleton import Batch
from stages.process import intent
from stages.process.fork import run_in_fork
from stages.store.foreign import read_document
from stages.streaming.stream import stream_layers
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED
from stages.weights.files import WeightFiles, has_weights, main_dtype

# fp32, same kernels, same shapes: zero is what is found on every family tried.  Experts are grouped by token, so
# other tokens in the batch may change the order of a sum in the last bit.
TOLERANCE = 1e-5
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "rotary_dim": 8,
    "moe_intermediate_size": 32,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "n_inner": 96,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "pad_token_id": 0,
}
LABELS = TaskSettings(labels=("a", "b", "c"))
SETTINGS: dict[HeadForm, Settings] = {
    "transformers": Settings(task=LABELS, head=HeadSettings(form="transformers")),
    "mean": Settings(task=LABELS, head=HeadSettings(form="mean")),
    "language-model": Settings(task=TaskSettings(kind="causal-lm")),
}
LAYERS = 3
VOCABULARY = 96


@dataclass(frozen=True)
class CheckReport:
    """Largest absolute difference from the model's own forward, over every layer's output and the head's."""

    model_type: str
    head_form: str
    decoder: bool
    difference: float

    def lines(self) -> list[str]:
        """For people."""
        kind = "decoder" if self.decoder else "encoder"
        return [
            f"{self.model_type} ({kind}), {self.head_form} head: block-wise equals the model's own forward",
            f"largest difference over all layers and the head: {self.difference:.3g}",
        ]


def check_model(model_dir: Path) -> CheckReport:
    """Check the architecture of a model directory with the head that transformers has for it, if any."""
    whole = has_classification_head(load_config(model_dir))
    return check_architecture(model_dir, "transformers" if whole else "mean")


def check_architecture(model_dir: Path, form: HeadForm, *, packing: bool = False) -> CheckReport:
    """Check the architecture of a model directory, with several texts in a row where `packing`.

    Raises `BadInput` where block-wise execution differs.
    """
    check_head(load_config(model_dir), form)
    return _check(read_document(model_dir / "config.json"), model_dir, form, packing, _stored_dtype(model_dir))


def refuse_unlike(model_dir: Path, form: HeadForm, *, packing: bool = False) -> None:
    """`check_architecture` before a stage's work.  A dry run leaves it out: the small model is streamed from files."""
    if intent.is_dry_run():
        check_head(load_config(model_dir), form)
        intent.leave_unchecked("the architecture, which 'chainctl model check' checks")
    else:
        check_architecture(model_dir, form, packing=packing)


def _stored_dtype(model_dir: Path) -> torch.dtype:
    """The floating dtype that most bytes of the weights are stored in; float32 where there are none."""
    return main_dtype(WeightFiles.open(model_dir).tensors.values() if has_weights(model_dir) else ())


@lru_cache(maxsize=32)
def _check(
    config_bytes: bytes,  # noqa: ARG001 -- cache key
    model_dir: Path,
    form: HeadForm,
    packing: bool,
    stored: torch.dtype,
) -> CheckReport:
    config = load_config(model_dir)
    try:
        # In a child: what it imports and allocates would stay with a stage that has a budget.
        return run_in_fork(lambda: compare(tiny_config(config), form, packing=packing, stored=stored))
    except ChainError:
        raise
    except Exception as error:
        raise BadInput(
            f"a small {config.model_type} cannot be run block by block",
            values={"configuration": model_dir / "config.json", "reason": type(error).__name__},
            hint="this architecture is not supported; please report it",
        ) from error


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture, small: only settings that the architecture has are changed."""
    known = set(config.to_dict()) | set(config.attribute_map)
    values: dict[str, object] = {name: value for name, value in TINY.items() if name in known}
    values |= dict.fromkeys(_as_wide(config), TINY["hidden_size"])
    if getattr(config, "num_key_value_heads", None) == getattr(config, "num_attention_heads", 0):
        values["num_key_value_heads"] = TINY["num_attention_heads"]
    depth = min(config.num_hidden_layers, LAYERS)
    layer_types = getattr(config, "layer_types", None) if "layer_types" in known else None
    if layer_types:
        depth = min(config.num_hidden_layers, max(depth, len(set(layer_types))))
        values["layer_types"] = _every_kind(list(layer_types), depth)
    values |= {"num_hidden_layers": depth, "vocab_size": VOCABULARY}
    values |= {
        "id2label": dict(enumerate(LABELS.labels)),
        "label2id": {label: row for row, label in enumerate(LABELS.labels)},
    }
    values |= {name: 1 for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id") if name in known}
    small = type(config).from_dict(
        config.to_dict() | {_stored_name(config, name): value for name, value in values.items()}
    )
    small.use_cache = False
    return small


def _as_wide(config: PretrainedConfig) -> list[str]:
    """Settings that repeat the hidden size under a name of their own, such as `pooler_hidden_size`."""
    return [
        name
        for name, value in config.to_dict().items()
        if name.endswith("_hidden_size") and value == config.hidden_size
    ]


def compare(
    config: PretrainedConfig, form: HeadForm, *, packing: bool = False, stored: torch.dtype = torch.float32
) -> CheckReport:
    """Stream a random model of `config`, its weights `stored` so, and compare it with its own forward in float32.

    Raises `BadInput`.
    """
    torch_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        # Frozen, as ours are: torch may take another kernel for the product with a weight that could train.
        own = FACTORIES[form].from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for parameter in own.parameters():
            nn.init.normal_(parameter, std=0.1)
            parameter.data = parameter.data.to(stored).float()
        batches = [_batch(side) for side in ("right", "left")]
    finally:
        torch.random.set_rng_state(torch_state)
    with tempfile.TemporaryDirectory(prefix="chainctl-check-") as directory:
        parameters = dict(own.named_parameters(remove_duplicate=False))
        own.save_pretrained(
            directory,
            state_dict={
                name: value.to(stored) if name in parameters else value for name, value in own.state_dict().items()
            },
        )
        difference = max(_difference(Path(directory), own, batch, form) for batch in batches)
        mixed = _mixing(Path(directory), own, form) if packing else 0.0
    if not difference <= TOLERANCE:  # also where it is not a number
        raise BadInput(
            f"block-wise execution of {config.model_type} differs from its own forward",
            values={"largest difference": f"{difference:.3g}", "allowed": f"{TOLERANCE:.3g}"},
            hint="this architecture is not supported; please report it",
        )
    if not mixed <= TOLERANCE:
        raise BadInput(
            f"packing does not work with {config.model_type}: texts in one row see each other",
            values={"largest difference": f"{mixed:.3g}", "allowed": f"{TOLERANCE:.3g}"},
            hint="set encoding.packing = false",
        )
    return CheckReport(config.model_type, form, is_decoder(config), difference)


@torch.no_grad()
def _mixing(directory: Path, own: PreTrainedModel, form: HeadForm) -> float:
    """How far two texts in one row are from each by itself: the last layer's output, on every token."""
    backbone = Backbone.open(directory, SETTINGS[form], pad_id=0)
    rows = tuple(ids[:length].numpy() for ids, length in zip(_batch("right").input_ids, (7, 5), strict=False))
    batch = EncodedTexts(rows, 0, "right", 1, row_length=12).batch([0, 1])
    hidden, arguments = backbone.embed(batch), backbone.skeleton.layer_arguments(batch)
    for layer, weights in stream_layers(backbone, range(backbone.num_layers)):
        hidden = backbone.run_layers({layer: weights}, hidden, batch, UNTUNED, arguments)
    alone = []
    for row in rows:
        ids = torch.from_numpy(row)[None]
        alone.append(_own_forward(own, Batch(ids, torch.ones_like(ids)))[0][-1])
    return float((hidden - torch.cat(alone, dim=1)).abs().max())


@torch.no_grad()
def _difference(directory: Path, own: PreTrainedModel, batch: Batch, form: HeadForm) -> float:
    """The largest difference on the real tokens of one batch."""
    settings = SETTINGS[form]
    backbone = Backbone.open(directory, settings, pad_id=0)
    expected, recorded = _own_forward(own, batch)
    real = batch.attention_mask.bool()
    hidden, arguments = backbone.embed(batch), backbone.skeleton.layer_arguments(batch)
    differences = []
    for layer, weights in stream_layers(backbone, range(backbone.num_layers)):
        hidden = backbone.run_layers({layer: weights}, hidden, batch, UNTUNED, arguments)
        differences.append((hidden - expected[layer])[real])
    if form == "language-model":
        differences.append((LanguageHead.of(backbone).logits(hidden, batch, chunk=40) - recorded.logits)[real])
    elif form == "transformers":
        differences.append(backbone.after_layers(hidden, batch, backbone.initial_head).logits - recorded.logits)
    else:
        final = backbone.after_layers(hidden, batch, {}).last_hidden_state - recorded.last_hidden_state
        differences.append(final[real])
    return max(float(difference.abs().max()) for difference in differences)


def _own_forward(own: PreTrainedModel, batch: Batch) -> tuple[list[Tensor], Any]:
    """Each layer's output, and the output object, of the whole model's own forward."""
    outputs: list[Tensor] = []

    def record(module: nn.Module, arguments: object, output: Any) -> None:  # noqa: ARG001
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(record) for layer in find_layers(own)[1]]
    try:
        return outputs, own(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    finally:
        for handle in handles:
            handle.remove()


def _batch(side: str) -> Batch:
    """Three rows of random tokens, of 12, 9 and 5."""
    ids = torch.randint(2, VOCABULARY, (3, 12))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 7)):
        where = slice(12 - padding, 12) if side == "right" else slice(0, padding)
        ids[row, where], mask[row, where] = 0, 0
    return Batch(ids, mask)


def _every_kind(layer_types: list[str], depth: int) -> list[str]:
    """`depth` layer types that hold every kind there is, in order of first appearance, then as they come."""
    kinds = list(dict.fromkeys(layer_types))
    return [*kinds, *layer_types][:depth]


def _stored_name(config: PretrainedConfig, name: str) -> str:
    return str(config.attribute_map.get(name, name))
