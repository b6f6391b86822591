"""Export for AdapterHub's `adapters` library: adapters and the trained head, to be used with the base model.

Our adapter is applied to a layer's output: h + W_up f(W_down h).  In that library's terms it is a bottleneck after the
output, without a layer norm of its own, and with the residual taken after the layer's; plain `seq_bn` moves the layer
norm and gives other values.  The files are written directly, because the library pins an older transformers.
"""

import json
from pathlib import Path

from schemas.errors import BadInput
from schemas.plan import PlanManifest
from stages.export.adapterhub_head import write_head
from stages.model.architecture import is_decoder
from stages.model.backbone import Backbone
from stages.store.artifact import Artifact
from stages.tuning.tensors import SUFFIXES
from stages.tuning.tuning import BottleneckTuning
from stages.weights.writer import entry_of, write_shard

VERSION = "adapters.1.3.0"  # the version whose layout this is
NAME = "chainctl"
# The module path of the adapter after layer {layer} in the library, by model type.
PLACES = {
    "bert": "encoder.layer.{layer}.output.adapters",
    "roberta": "encoder.layer.{layer}.output.adapters",
    "distilbert": "transformer.layer.{layer}.output_adapters.adapters",
    "llama": "model.layers.{layer}.output_adapters.adapters",
    "mistral": "model.layers.{layer}.output_adapters.adapters",
}
PARTS = {
    "down.weight": "adapter_down.0.weight",
    "down.bias": "adapter_down.0.bias",
    "up.weight": "adapter_up.weight",
    "up.bias": "adapter_up.bias",
}
BOTTLENECK = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "init_weights": "bert",
    "is_parallel": False,
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "original_ln_after": False,
    "original_ln_before": True,
    "output_adapter": True,
    "residual_before_ln": False,
    "scaling": 1.0,
    "use_gating": False,
}


def write_adapter(
    folder: Path, *, plan: Artifact[PlanManifest], backbone: Backbone, tuning: BottleneckTuning
) -> tuple[str, tuple[str, ...]]:
    """Write into a folder of `complete_directory`; the class that loads it, and notes on what is left out.

    Raises `BadInput` for an architecture that the library has no adapters for.
    """
    model, chosen = plan.manifest.model, plan.manifest.settings
    if model.model_type not in PLACES:
        raise BadInput(
            "the adapters library is not known to support this architecture",
            values={"expected": ", ".join(PLACES), "found": model.model_type},
            hint="--format hf supports every architecture",
        )
    tensors = {
        f"{PLACES[model.model_type].format(layer=layer)}.{NAME}.{PARTS[suffix]}": value
        for layer, adapter in tuning.adapters.items()
        for value, suffix in zip(adapter.parameters(), SUFFIXES, strict=True)
    }
    entries = [entry_of(name, tensors[name]) for name in sorted(tensors)]
    write_shard(folder / "adapter.safetensors", entries)
    config = {
        "config": {
            **BOTTLENECK,
            "leave_out": [layer for layer in range(model.num_layers) if layer not in tuning.adapters],
            "non_linearity": chosen.adapter.activation,
            "reduction_factor": reduction_factor(model.hidden_size, plan.manifest.bottleneck),
        },
        "hidden_size": model.hidden_size,
        "model_class": model_class(backbone),
        "model_name": "",
        "model_type": model.model_type,
        "name": NAME,
        "version": VERSION,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    written = write_head(folder, name=NAME, version=VERSION, plan=plan.manifest, backbone=backbone, tuning=tuning)
    return "AutoAdapterModel", () if written else left_out(tuning)


def left_out(tuning: BottleneckTuning) -> tuple[str, ...]:
    """A note on a trained head that the library cannot build."""
    head = ", ".join(sorted(tuning.head))
    return (f"Not in this folder: the trained head ({head}); --format hf has it.",) if head else ()


def model_class(backbone: Backbone) -> str:
    """The class whose module paths are in `PLACES`: the language model of a decoder, else the bare encoder."""
    family = type(backbone.skeleton.model).__name__.removesuffix("Model").partition("For")[0]
    return f"{family}ForCausalLM" if is_decoder(backbone.skeleton.config) else f"{family}Model"


def reduction_factor(width: int, bottleneck: int) -> float:
    """A factor from which the library derives the same bottleneck, as `width // factor`."""
    whole = width // bottleneck
    return whole if width // whole == bottleneck else width / (bottleneck + 0.5)
