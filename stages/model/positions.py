"""How many positions has a model?  As many as its tables of positions have rows, whatever they are called.

A table of positions is a tensor with a dimension that grows as the configuration's `max_position_embeddings` does:
learned embeddings (BERT, GPT-2), stored sinusoids (RoFormer), rotary angles (GPT-J).  Angles that are computed (LLaMA),
biases (ALiBi) and state spaces have none, and take texts of any length; relative positions grow at another rate.
Embeddings with a padding index count from behind it: 514 rows of RoBERTa are 512 positions.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import BadInput
from schemas.settings import EncodingSettings

GROWTH = 8  # positions

Shape = tuple[int, ...]
Build = Callable[[PretrainedConfig], PreTrainedModel]


def possible_tables(model: PreTrainedModel) -> dict[str, Shape]:
    """Shapes of the tensors of a model that could be tables of positions: one of their dimensions is large enough."""
    positions = _positions(model.config)
    if positions is None:
        return {}
    return {name: shape for name, shape in _shapes(model).items() if max(shape, default=0) >= positions}


def position_limit(config: PretrainedConfig, tables: Mapping[str, Shape], build: Build) -> int | None:
    """How many tokens a text can have; None where no table limits it.

    `tables`: as `possible_tables` finds them in the model of `config`; `build` makes a model of a configuration.
    """
    positions = _positions(config)
    if positions is None or not tables:
        return None
    grown = copy.deepcopy(config)
    grown.max_position_embeddings = positions + GROWTH
    with torch.device("meta"):
        model = build(grown)
    shapes = _shapes(model)
    owners = [
        model.get_submodule(name.rpartition(".")[0])
        for name, shape in tables.items()
        if name in shapes and _grew(shape, shapes[name])
    ]
    fixed = [owner for owner in owners if not hasattr(owner, "make_weights")]  # fairseq's sinusoids grow with the text
    return positions - max(map(_rows_before_the_first, fixed)) if fixed else None


def check_length(encoding: EncodingSettings, config: PretrainedConfig, limit: Callable[[], int | None]) -> None:
    """Texts may have as many tokens as the plan says.  Raises `BadInput`.

    `limit` is called only where `config` leaves it open.
    """
    positions = _positions(config)
    if encoding.max_length == "auto" or positions is None:
        return
    if encoding.max_length <= positions - 1 - (config.pad_token_id or 0):  # even where positions begin behind padding
        return
    most = limit()
    if most is not None and encoding.max_length > most:
        raise BadInput(
            "encoding.max_length is above the number of tokens that the model has positions for",
            values={"encoding.max_length": encoding.max_length, f"limit of this {config.model_type}": most},
            hint=f'set encoding.max_length to "auto" or to at most {most}; if a plan has it, make that again',
        )


def _positions(config: PretrainedConfig) -> int | None:
    found = getattr(config, "max_position_embeddings", None)
    return found if type(found) is int and found > 0 else None


def _shapes(model: PreTrainedModel) -> dict[str, Shape]:
    """Shapes of all parameters and buffers that are not indices."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tuple(value.shape) for name, value in tensors if value.is_floating_point()}


def _grew(before: Shape, after: Shape) -> bool:
    changes = [new - old for old, new in zip(before, after, strict=True)]
    return GROWTH in changes


def _rows_before_the_first(table: nn.Module) -> int:
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1
