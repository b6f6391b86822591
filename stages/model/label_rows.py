"""The parameters of a classification head that have a row for each label.

They train in every task, so a checkpoint that has them is a start and no more: its rows are for its own labels, in its
own order.  They are found by building the model for one label more, not by their names.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import BadInput
from stages.data.labels import canonical
from stages.model.architecture import empty_model


def label_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Names of the parameters of a …ForSequenceClassification whose leading dimension is its number of labels."""
    config = copy.deepcopy(model.config)
    config.num_labels += 1
    shapes = {name: parameter.shape for name, parameter in empty_model(config, "transformers").named_parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if parameter.shape != shapes[name])


def labels_by_row(config: PretrainedConfig) -> tuple[str, ...]:
    """The labels of a checkpoint's head, its `id2label`; none where that does not count its rows from 0."""
    labels = config.id2label
    return tuple(str(labels[row]) for row in sorted(labels)) if sorted(labels) == list(range(len(labels))) else ()


def row_order(stored_labels: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each label its row among `stored_labels`; None unless both are the same set of two or more.

    Names are compared as those of data are: in NFC, without blanks around them.
    """
    stored, wanted = [canonical(label) for label in stored_labels], [canonical(label) for label in labels]
    same = len(wanted) > 1 and len(set(wanted)) == len(wanted) and sorted(stored) == sorted(wanted)
    return [stored.index(label) for label in wanted] if same else None


def rows_in_order(name: str, stored: Tensor, order: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The stored rows in the order of the plan's labels, float32, of `shape`.  Raises `BadInput` for other shapes."""
    if tuple(stored.shape) != tuple(shape):
        raise BadInput(
            f"the checkpoint's {name} does not have a row for each of its labels",
            values={"shape by config.json": tuple(shape), "shape in the weights": tuple(stored.shape)},
            hint="config.json and the weights must come from the same model",
        )
    return stored.float()[torch.tensor(order)]
