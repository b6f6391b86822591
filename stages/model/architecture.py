"""What architecture a model directory has: its configuration, its list of layers, which heads exist for it."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging

from schemas.errors import BadInput
from schemas.settings import HeadForm
from stages.data.model_folder import check_model_folder
from stages.model.claims import check_claims
from stages.store.foreign import blamed_on, read_json

logging.set_verbosity(logging.CRITICAL)  # what is wrong with a model is said in our own errors
logging.disable_progress_bar()


def load_config(model_dir: Path) -> PretrainedConfig:
    """The model's configuration.  Never runs code of the model's own.  Raises `BadInput`."""
    check_model_folder(model_dir)
    path = model_dir / "config.json"
    check_claims(path)
    with blamed_on_config(path):
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                model_dir, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, KeyError, OSError) as error:
            if _is_known(path):
                raise
            raise BadInput(
                f"{path} names an architecture that the installed transformers does not have",
                values={"reason": type(error).__name__},
                hint="upgrade transformers; architectures with code of their own are not run",
            ) from None
    if not hasattr(config, "num_hidden_layers"):
        raise BadInput(
            f"{path} describes several models in one",
            values={"parts": ", ".join(config.sub_configs), "expected": "a model of texts alone"},
            hint="save its language model alone: AutoModelForCausalLM.from_pretrained(DIR).get_decoder()"
            ".save_pretrained(OUT), then AutoTokenizer.from_pretrained(DIR).save_pretrained(OUT)",
        )
    return config


def blamed_on_config(path: Path) -> AbstractContextManager[None]:
    """Whatever transformers raises in the block is the configuration's doing; see `blamed_on`."""
    return blamed_on(
        path,
        "describes a model that the installed transformers cannot build",
        hint="copy it again, or upgrade transformers",
        quotes=True,
    )


def _is_known(path: Path) -> bool:
    """Whether transformers has the architecture that a configuration names."""
    return read_json(path).get("model_type") in list(CONFIG_MAPPING)


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether the architecture is causal: transformers has a causal-LM form of it and no masked-LM form."""
    kind = config.model_type
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return causal or bool(getattr(config, "is_decoder", False))


def has_classification_head(config: PretrainedConfig) -> bool:
    """Whether transformers has a …ForSequenceClassification of the architecture."""
    return config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def check_head(config: PretrainedConfig, form: HeadForm) -> None:
    """Refuse a head that the architecture does not have.  Raises `BadInput`."""
    if form == "transformers" and not has_classification_head(config):
        raise BadInput(
            f"transformers has no sequence classification head for {config.model_type}",
            values={"head.form": form},
            hint='set form = "mean" in the [head] section of the recipe',
        )
    if form == "language-model" and not is_decoder(config):
        raise BadInput(
            f"transformers has no causal language model of the architecture {config.model_type}",
            values={"task.kind": "causal-lm"},
            hint="use a decoder, or the task text-classification",
        )


FACTORIES = {
    "transformers": AutoModelForSequenceClassification,
    "mean": AutoModel,
    "language-model": AutoModelForCausalLM,
}


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Models that are built meanwhile have parameters without memory or initial values; their buffers are real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        with no_init_weights():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def empty_model(config: PretrainedConfig, form: HeadForm, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of `config` on the meta device, buffers real.  Takes milliseconds at any size."""
    # Parameters only: buffers that no checkpoint holds (rotary frequencies, position ids) are real from the start.
    with parameters_on_meta():
        model: PreTrainedModel = FACTORIES[form].from_config(config, dtype=dtype)
    return model


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and modules of the layer list: the shallowest `ModuleList` with `num_hidden_layers` entries."""
    count = model.config.num_hidden_layers
    found = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise BadInput(
            f"{type(model).__name__} has no list of {count} layers",
            hint="this architecture cannot be streamed layer by layer",
        )
    _, name, layers = min(found, key=lambda entry: entry[:2])
    return name, layers


def returns_tuple(layer: nn.Module) -> bool:
    """Whether a layer's forward returns a tuple, according to its source; `check.py` detects where this is wrong."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(layer).forward)))
    returned = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return) and node.value]
    return bool(returned) and _is_tuple(returned[-1])


def _is_tuple(value: ast.expr) -> bool:
    """Whether an expression is a tuple: one that is written out, `(hidden,) + outputs`, or `outputs`."""
    if isinstance(value, ast.BinOp):
        return _is_tuple(value.left)
    return isinstance(value, ast.Tuple) or ast.unparse(value) == "outputs"
