"""What a config.json claims, checked before a model is built from it.

A configuration is a few numbers that make a library allocate, and count, whatever they say.  Those that decide how
much are bounded first.  Then a child with limits builds the model on the meta device, where values take no memory: so
nothing is built here that the system would have to stop, or that is larger than the weights beside it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from schemas.errors import BadInput
from stages.data.model_folder import CONFIG_BYTES
from stages.process.confined import Limits, OverLimitError, run_confined
from stages.store.foreign import read_json

MOST_LAYERS = 2048
MOST_LABELS = 2**17
LARGEST_SIZE = 2**31
POSITIVE = ("hidden_size", "num_hidden_layers", "vocab_size")
SIZES = (*POSITIVE, "num_attention_heads", "intermediate_size", "max_position_embeddings")
WEIGHTS = (".safetensors", ".bin")
SLACK_VALUES = 2**24  # of what a model may have and its files may lack: heads and poolers
BUFFER_BYTES = 64 * 2**20
BUILDING = Limits()
READING_GGUF = Limits(seconds=60)  # the library takes 10 µs for each token, of a number that is bounded
HINT = "the configuration and the weights must come from the same model: copy it again"


class Claim(NamedTuple):
    """What a built model would hold."""

    values: int  # of its parameters
    buffer_bytes: int  # of what no file holds, and is in memory as soon as the model is built


def check_claims(path: Path) -> None:
    """Bound what the configuration at `path` makes of this process.  Raises `BadInput`."""
    document = read_json(path, at_most=CONFIG_BYTES)
    if not isinstance(document, dict):
        raise BadInput(
            f"{path} is not a configuration",
            values={"expected": "an object", "found": type(document).__name__},
            hint="copy it again",
        )
    for part in _parts(document):
        _check_sizes(path, part)
    stored = sum(file.stat().st_size for file in path.parent.iterdir() if file.suffix in WEIGHTS and file.is_file())
    _check_built(path, json.dumps(document), stored)


def _parts(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those that it holds, such as `text_config`, by transformers' common names."""
    kind = document.get("model_type")
    names = CONFIG_MAPPING[kind].attribute_map if isinstance(kind, str) and kind in CONFIG_MAPPING else {}
    yield {**document, **{common: document[own] for common, own in names.items() if own in document}}
    for value in document.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from _parts(value)


def _check_sizes(path: Path, part: Mapping[str, Any]) -> None:
    for name in SIZES:
        value = part.get(name)
        if value is None or isinstance(value, list):  # absent, or one for each layer
            continue
        least, most = int(name in POSITIVE), MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE
        if type(value) is not int or not least <= value <= most:
            raise _impossible(path, name, f"a whole number from {least} to {most}", value)
    named = part.get("id2label")
    labels = max(len(named) if isinstance(named, dict) else 0, _whole(part.get("num_labels")))
    if labels > MOST_LABELS:
        raise _impossible(path, "num_labels", f"at most {MOST_LABELS}", labels)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _impossible(path: Path, name: str, expected: str, value: object) -> BadInput:
    return BadInput(
        f"{path} describes no model: {name} is impossible",
        values={"expected": expected, "found": ascii(value)[:40]},
        hint="copy it again",
    )


@lru_cache(maxsize=32)
def _check_built(path: Path, document: str, stored: int) -> None:  # noqa: ARG001 -- cache key
    """Build it in a child; `stored`: bytes of all weights beside it, each a value or more."""
    _check_claim(path, lambda: _claim(path.parent), stored, BUILDING)


def check_gguf_claims(path: Path, values: int) -> None:
    """The same of the configuration in a GGUF file, whose tensors have so many values.  Raises `BadInput`."""
    _check_claim(path, lambda: _claim(path.parent, gguf_file=path.name), values, READING_GGUF)


def _check_claim(path: Path, find: Callable[[], Claim | None], stored: int, limits: Limits) -> None:
    try:
        claim = run_confined(find, limits)
    except OverLimitError as error:
        raise BadInput(
            f"{path} describes a model that takes too long, or too much memory, to build",
            values={"limits": limits, "reached": error.resource},
            hint=HINT,
        ) from None
    if claim is None:
        return
    if stored and claim.values > stored + SLACK_VALUES:
        raise BadInput(
            f"{path} describes a larger model than the weights beside it can hold",
            values={"described": f"{claim.values:,} values", "weights": f"at most {stored:,} values"},
            hint=HINT,
        )
    if claim.buffer_bytes > max(BUFFER_BYTES, stored):
        raise BadInput(
            f"{path} describes a model with buffers larger than its weights",
            values={"described": f"{claim.buffer_bytes:,} bytes", "at most": f"{max(BUFFER_BYTES, stored):,} bytes"},
            hint=HINT,
        )


def _claim(model_dir: Path, **options: str) -> Claim | None:
    """What the model would hold; None where the library refuses to build it, as it will say again."""
    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False, **options)
        with torch.device("meta"), no_init_weights():
            model = AutoModel.from_config(config)
    except MemoryError:
        raise
    except Exception:
        return None
    return Claim(
        sum(parameter.numel() for parameter in model.parameters()),
        sum(buffer.numel() * buffer.itemsize for buffer in model.buffers()),
    )
