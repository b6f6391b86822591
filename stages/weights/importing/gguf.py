"""A GGUF file (llama.cpp's format, mostly quantized) as configuration, tokenizer and plain weights.

transformers reads it, with the packages `gguf` and `accelerate`.  It cannot do so shard by shard: the whole model is
unpacked in memory, in the dtype of the result, plus the largest tensor twice in float32.  What transformers would drop
silently (scaled rotary frequencies, tensors that it has no name for) is refused.
"""

import contextlib
import importlib.util
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from schemas.errors import BadInput, ChainError, DoesNotFit
from stages.process.measure import device_memory_bytes, mebibytes, resident_bytes
from stages.store.foreign import read_json
from stages.weights.files import incomplete
from stages.weights.importing.gguf_header import check_header
from stages.weights.writer import Entry, entry_of

NEEDED = ("gguf", "accelerate")
# llama.cpp's names of ways to split texts that split digits one by one; transformers' reader treats them as GPT-2's.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
LIKE_GPT2 = ("", "default", "gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "trillion", "granite-docling")


@dataclass(frozen=True)
class GgufFile:
    """The header of a file: enough to refuse it before anything is unpacked."""

    path: Path
    architecture: str
    layers: int
    template: str | None
    splitting: str  # how texts are split before they are tokenized
    scaling: str  # of the rotary frequencies
    tensors: dict[str, int]  # number of values of each
    frequencies: bool  # whether tensors in the file change the rotary frequencies

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read the header.  Raises `BadInput`."""
        _check_packages()
        from gguf import GGUFReader

        try:
            check_header(path)
            return cls._read(path, GGUFReader(path))
        except ChainError:
            raise
        except Exception as error:  # the library checks nothing, and so raises anything
            raise incomplete(
                path, "GGUF file", str(error) if type(error) is ValueError else type(error).__name__
            ) from None

    @classmethod
    def _read(cls, path: Path, reader: Any) -> "GgufFile":
        def field(name: str, otherwise: Any) -> Any:
            return reader.fields[name].contents() if name in reader.fields else otherwise

        _refuse_parts(path, int(field("split.count", 1)))
        architecture = str(field("general.architecture", ""))
        layers = int(field(f"{architecture}.block_count", 0))
        if layers > len(reader.tensors):
            raise ValueError(f"{layers} layers of {len(reader.tensors)} tensors")
        rotary = [tensor for tensor in reader.tensors if tensor.name.startswith("rope_")]
        return cls(
            path=path,
            architecture=architecture,
            layers=layers,
            template=field("tokenizer.chat_template", None),
            splitting=str(field("tokenizer.ggml.pre", "")) if field("tokenizer.ggml.model", "") == "gpt2" else "",
            scaling=str(field(f"{architecture}.rope.scaling.type", "none")),
            tensors={tensor.name: int(tensor.n_elements) for tensor in reader.tensors if tensor not in rotary},
            frequencies=any(bool((tensor.data != 1).any()) for tensor in rotary),
        )

    @property
    def values(self) -> int:
        """Number of values of all tensors."""
        return sum(self.tensors.values())

    def memory_bytes(self, dtype: torch.dtype) -> int:
        """What unpacking takes, beside what this process is already."""
        return self.values * dtype.itemsize + 2 * 4 * max(self.tensors.values(), default=0)

    def read_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The whole model in memory.  Raises `DoesNotFit`, and `BadInput` where a tensor is missing or left over."""
        self._check_memory(dtype)
        try:
            with _silence():
                model, report = AutoModelForCausalLM.from_pretrained(
                    self.path.parent,
                    gguf_file=self.path.name,
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **_unpacked(),
                )
        except Exception as error:  # the header decides what it builds, and what of it fails
            raise BadInput(
                f"transformers cannot read {self.path.name}",
                values={"architecture": self.architecture, "reason": f"{type(error).__name__}: {error}"[:200]},
                hint="get the model as safetensors",
            ) from None
        self._check_whole(model, sorted(report["missing_keys"]))
        self._check_rotation(model)
        return model

    def save_tokenizer(self, directory: Path) -> None:
        """Write tokenizer.json, its configuration and the chat template into a directory of `complete_directory`.

        Raises `BadInput`.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises bare Exception
            raise BadInput(
                f"transformers cannot make a tokenizer from {self.path.name}",
                values={"reason": f"{type(error).__name__}: {error}"[:200]},
                hint="get the model as safetensors, with its tokenizer.json",
            ) from None
        if self.splitting in SINGLE_DIGITS:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(directory)
        _drop_loading_facts(directory / "tokenizer_config.json")
        if self.template is not None:
            (directory / "chat_template.jinja").write_text(self.template, encoding="utf-8", newline="")

    def notes(self) -> list[str]:
        """What the user should know about the result."""
        from transformers.integrations.gguf import gguf_tokenizer_mapping

        known = {*gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS, *SINGLE_DIGITS, *LIKE_GPT2}
        if self.splitting in known:
            return []
        return [f"texts are split as in GPT-2: transformers does not know the file's own way, {self.splitting}"]

    def _check_memory(self, dtype: torch.dtype) -> None:
        needed, has = (resident_bytes() or 0) + self.memory_bytes(dtype), device_memory_bytes()
        if needed > has:
            raise DoesNotFit(
                f"{self.path.name} does not fit this machine's memory once unpacked",
                values={"needs": mebibytes(needed), "machine has": mebibytes(has)},
                hint="use --dtype bfloat16, which needs half, or import it on a larger machine",
            )

    def _check_whole(self, model: PreTrainedModel, missing: list[str]) -> None:
        if missing:
            raise BadInput(
                f"{self.path.name} lacks {missing[0]}",
                values={"parameters missing": len(missing), "architecture": self.architecture},
                hint="the file is incomplete, or transformers does not read all of this architecture's GGUF files",
            )
        tied = model.config.tie_word_embeddings
        used = {name: count for name, count in self.tensors.items() if self._is_used(name, tied=tied)}
        found = sum(parameter.numel() for parameter in model.parameters())
        if sum(used.values()) > found + sum(buffer.numel() for buffer in model.buffers()):
            raise BadInput(
                f"transformers leaves out a part of {self.path.name}",
                values={"values in the file": sum(used.values()), "values in the model": found},
                hint="the result would be a different model: get it as safetensors",
            )

    def _is_used(self, name: str, *, tied: bool) -> bool:
        """Whether a tensor belongs to the model; those after the last layer, which predict further tokens, do not."""
        block = re.match(r"blk\.(\d+)\.", name)
        return not (block and int(block[1]) >= self.layers) and not (tied and name == "output.weight")

    def _check_rotation(self, model: PreTrainedModel) -> None:
        kind = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
        if kind == "default" and (self.frequencies or self.scaling != "none"):
            raise BadInput(
                f"{self.path.name} scales its rotary frequencies, which transformers does not read from GGUF files",
                values={"file says": self.scaling if self.scaling != "none" else "rope_freqs", "read": kind},
                hint="the result would be a different model: get it as safetensors",
            )


def entries_of(model: PreTrainedModel) -> list[Entry]:
    """The entries of a model in memory: parameters, a tied one once, and the buffers that checkpoints hold."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return [entry_of(name, value) for name, value in model.state_dict().items() if name not in tied]


def _drop_loading_facts(path: Path) -> None:
    """Drop from a tokenizer's configuration what describes how it was loaded."""
    content = read_json(path)
    for name in ("is_local", "local_files_only", "name_or_path", "gguf_file"):
        content.pop(name, None)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            "reading GGUF files needs packages that are not installed",
            values={"missing": ", ".join(missing)},
            hint="pip install 'chainctl[import]'",
        )


def _refuse_parts(path: Path, count: int) -> None:
    if count > 1:
        raise BadInput(
            f"{path.name} is one of several parts",
            values={"expected": "one file", "found": f"{count} parts"},
            hint="join them with llama.cpp: llama-gguf-split --merge FIRST-PART WHOLE",
        )


def _unpacked() -> dict[str, Any]:
    """Arguments that make newer transformers unpack every weight: they keep some architectures' packed."""
    import transformers

    factory = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": factory(dequantize=True)} if factory else {}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide the progress bar of transformers' reader, which no setting turns off."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
