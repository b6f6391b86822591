"""Is a model directory whole?  Every parameter of the architecture that it says it is, and a tokenizer that opens.

Stages look at less: a head that is absent may be one that trains.  Who brings a model in looks at everything.
"""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from schemas.errors import BadInput
from schemas.refs import ModelFingerprint
from schemas.settings import EncodingSettings
from stages.data.encode import Encoder
from stages.model.architecture import blamed_on_config, is_decoder, load_config, parameters_on_meta
from stages.model.backbone import Backbone
from stages.model.skeleton import Skeleton
from stages.streaming.check import SETTINGS
from stages.weights.files import WeightFiles
from stages.weights.names import Names, resolve


def published_model(model_dir: Path) -> PreTrainedModel:
    """The model that the weights were saved from, by `architectures`, on the meta device.

    Where that names no class of transformers for this configuration: the language model of a decoder, else the bare
    encoder.  Raises `BadInput`.
    """
    config = load_config(model_dir)
    with blamed_on_config(model_dir / "config.json"):
        return _built(config)


def _built(config: PretrainedConfig) -> PreTrainedModel:
    named: list[Any] = [getattr(transformers, str(name), None) for name in config.architectures or ()]
    fitting = [entry for entry in named if _is_model_of(entry, config)]
    with parameters_on_meta(), no_init_weights():
        if fitting:
            model: PreTrainedModel = fitting[0](config)
        else:
            model = (AutoModelForCausalLM if is_decoder(config) else AutoModel).from_config(config)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _is_model_of(entry: Any, config: PretrainedConfig) -> bool:
    is_model = isinstance(entry, type) and issubclass(entry, PreTrainedModel)
    return is_model and entry.config_class is not None and isinstance(config, entry.config_class)


def read_names(model_dir: Path) -> tuple[Skeleton, Names]:
    """The published model of a directory, and where each of its parameters lies.

    Raises `BadInput` where a layer or the embedding is not filled exactly.
    """
    model = published_model(model_dir)
    with blamed_on_config(model_dir / "config.json"):
        skeleton = Skeleton(model, "language-model" if model.get_output_embeddings() is not None else "mean")
    where = {"layer_prefix": skeleton.layer_prefix, "embedding": skeleton.embedding_name}
    return skeleton, resolve(skeleton.model, WeightFiles.open(model_dir), **where)


def check_whole(model_dir: Path) -> ModelFingerprint:
    """Open it as the stages do, and look for every parameter; its fingerprint.  Raises `BadInput`."""
    skeleton, names = read_names(model_dir)
    missing = missing_parameters(skeleton, names)
    if missing:
        raise BadInput(
            f"the model's weights lack {missing[0]}",
            values={"architecture": type(skeleton.model).__name__, "parameters missing": len(missing)},
            hint="the weights are incomplete: get every file of the model again",
        )
    encoder = Encoder.load(model_dir, EncodingSettings())
    form = SETTINGS["language-model" if is_decoder(skeleton.config) else "mean"]
    return Backbone.open(model_dir, form, pad_id=encoder.pad_id).reader.fingerprint()


def missing_parameters(skeleton: Skeleton, names: Names) -> list[str]:
    """Parameters that nothing stored fills, and that are tied to nothing that is."""
    model = skeleton.model
    loads = [load for layer in names.layers for load in layer] + [names.embeddings, *names.rest]
    filled = {target for load in loads for target in load.targets()}
    tied = model.all_tied_weights_keys
    filled |= {target for target, source in tied.items() if source in filled}
    filled |= {source for target, source in tied.items() if target in filled}
    ignored = list(model._keys_to_ignore_on_load_missing or ())
    wanted = [name for name in skeleton.state_names if name not in filled]
    return sorted(name for name in wanted if not any(re.search(pattern, name) for pattern in ignored))


def parameter_count(names: Names) -> int:
    """Values of everything that the model uses, a tied parameter once."""
    loads = [load for layer in names.layers for load in layer] + [names.embeddings, *names.rest]
    return sum(torch.Size(tensor.shape).numel() for load in loads for tensor, _ in load.sources)
