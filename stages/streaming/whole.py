"""Is a model directory whole?  Every parameter of the architecture that it says it is, and a tokenizer that opens.

Stages look at less: a head that is absent may be one that trains.  Who brings a model in looks at everything.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from schemas.refs import ModelFingerprint
from schemas.settings import EncodingSettings
from stages.data.encode import Encoder
from stages.model.architecture import blamed_on_config, is_decoder, load_config, parameters_on_meta
from stages.model.backbone import Backbone
from stages.model.skeleton import Skeleton
from stages.streaming.check import SETTINGS
from stages.weights.files import WeightFiles
from stages.weights.names import Names, lacking, missing_parameters, resolve


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
    with parameters_on_meta():
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
        raise lacking(skeleton, missing)
    encoder = Encoder.load(model_dir, EncodingSettings())
    speaks = is_decoder(skeleton.config) and skeleton.head_form == "language-model"  # a decoder may be a classifier
    form = SETTINGS["language-model" if speaks else "mean"]
    return Backbone.open(model_dir, form, pad_id=encoder.pad_id).reader.fingerprint()


def parameter_count(names: Names) -> int:
    """Values of everything that the model uses, a tied parameter once."""
    loads = [load for layer in names.layers for load in layer] + [names.embeddings, *names.rest]
    return sum(torch.Size(tensor.shape).numel() for load in loads for tensor, _ in load.sources)
