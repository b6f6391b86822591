"""The classification head of a state, as AdapterHub's library builds it: dense, activation, dense, on the first token.

Three families of encoders have such a head, each with its own names.  Where a part of it is in the checkpoint (BERT's
pooler, for example), that part is copied, so that nothing is needed but the folder and the base model.  The library
cannot build a mean over tokens, nor a decoder's head on the last token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from schemas.plan import PlanManifest
from stages.model.backbone import Backbone
from stages.tuning.tuning import BottleneckTuning
from stages.weights.writer import entry_of, write_shard

CONFIG, WEIGHTS = "head_config.json", "model_head.safetensors"


@dataclass(frozen=True)
class Head:
    """A family's names of its two linear layers, the activation between them, and the library's model class."""

    first: str
    last: str
    activation: str
    model_class: str


HEADS = {
    "bert": Head("bert.pooler.dense", "classifier", "tanh", "BertAdapterModel"),
    "roberta": Head("classifier.dense", "classifier.out_proj", "tanh", "RobertaAdapterModel"),
    "distilbert": Head("pre_classifier", "classifier", "relu", "DistilBertAdapterModel"),
}
PLACES = ("1", "4")  # of the linear layers in the library's sequence: dropout, linear, activation, dropout, linear


def write_head(
    folder: Path,
    *,
    name: str,
    version: str,
    plan: PlanManifest,
    backbone: Backbone,
    tuning: BottleneckTuning,
) -> bool:
    """Write the head, float32, beside its adapter in a folder of `complete_directory`; whether the library has it."""
    head = HEADS.get(plan.model.model_type)
    if head is None or backbone.skeleton.head_form != "transformers":
        return False
    entries = [
        entry_of(f"heads.{name}.{place}.{part}", parameter(f"{ours}.{part}", backbone, tuning))
        for place, ours in zip(PLACES, (head.first, head.last), strict=True)
        for part in ("bias", "weight")
    ]
    write_shard(folder / WEIGHTS, entries)
    config = {
        "config": configuration(head, plan),
        "hidden_size": plan.model.hidden_size,
        "model_class": head.model_class,
        "model_name": "",
        "model_type": plan.model.model_type,
        "name": name,
        "version": version,
    }
    # Not sorted: the library lists labels in the order of the file.
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return True


def configuration(head: Head, plan: PlanManifest) -> dict[str, object]:
    """The configuration from which the library builds the head."""
    labels = plan.settings.task.labels
    return {
        "activation_function": head.activation,
        "bias": True,
        "dropout_prob": None,
        "head_type": "classification",
        "label2id": {label: index for index, label in enumerate(labels)},
        "layers": len(PLACES),
        "num_labels": len(labels),
        "use_pooler": False,
    }


def parameter(name: str, backbone: Backbone, tuning: BottleneckTuning) -> Tensor:
    """A parameter of the head, float32: as trained, else as in the checkpoint."""
    if name in tuning.head:
        return tuning.head[name]
    found: Tensor = backbone.skeleton.model.get_parameter(name)
    return found.detach().float()
