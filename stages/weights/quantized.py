"""Quantized checkpoints: which method made them, and the way to weights that train.

A frozen layer computes with its weights as numbers.  Quantized ones are numbers only together with their scales, so
they are refused by the name of the method, before anything about names or shapes looks wrong.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PretrainedConfig

from schemas.errors import BadInput

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
SCALES = ("_scale_inv", "_scale")  # of the parameter that the name begins with
SERVING = re.compile(r"\.([kqv]|input|output|activation)_scale(_ub)?$")  # of activations, when such a model is served
SIGNS = {  # names of tensors that only one method has
    r"\.(absmax|quant_map|SCB)$": "bitsandbytes",
    r"\.qweight$": "gptq or awq",
    r"\.weight_packed$": "compressed-tensors",
    r"_blocks$": "mxfp4",
}
LOADS = "AutoModelForCausalLM.from_pretrained(DIR"
ORIGINAL = "take the model that it was made from"
WAYS_OUT = {
    "bitsandbytes": f"{ORIGINAL}, or with bitsandbytes installed: {LOADS}).dequantize().save_pretrained(OUT)",
    "compressed-tensors": f"{ORIGINAL}, or with compressed-tensors installed: {LOADS}, quantization_config="
    "CompressedTensorsConfig(run_compressed=False)).save_pretrained(OUT)",
    "mxfp4": f"{ORIGINAL}, or: {LOADS}, quantization_config=Mxfp4Config(dequantize=True)).save_pretrained(OUT)",
    "mlx": f"{ORIGINAL}, or with mlx-lm: mlx_lm.convert --dequantize --hf-path DIR --mlx-path OUT",
}
OTHER_WAY_OUT = f"{ORIGINAL}, or save it dequantized with the library that quantized it"


class Typed(Protocol):
    """A tensor, as far as its header tells."""

    @property
    def name(self) -> str:
        """Its name in the file."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it is stored in."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as stored."""
        ...


def refuse_quantized(config: PretrainedConfig, tensors: Iterable[Typed], folder: Path) -> None:
    """Refuse a checkpoint that is quantized, or says so.  Raises `BadInput` with the method and the way out."""
    by_name = {tensor.name: tensor for tensor in tensors}
    method = method_of(config, by_name)
    if not method:
        return
    odd = next((tensor for tensor in by_name.values() if tensor.dtype not in PLAIN), None)
    example = {"for example": f"{odd.name}, {name_of(odd.dtype)} {list(odd.shape)}"} if odd else {}
    way_out = WAYS_OUT.get(method, OTHER_WAY_OUT)
    if is_fp8(by_name):
        way_out = f"'chainctl model import {folder} --out OUT' dequantizes it"
    elif odd is None:
        way_out += '; if it has been dequantized since, remove "quantization_config" from config.json'
    raise BadInput(
        f"the weights in {folder} are quantized ({method})",
        values={"expected": "float32, bfloat16 or float16", **example},
        hint=way_out,
    )


def method_of(config: PretrainedConfig, tensors: Mapping[str, Typed]) -> str:
    """The method that made a checkpoint, as its configuration or its tensors tell; empty where it is not quantized."""
    settings = _settings(config)
    if settings:
        by_bits = "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & settings.keys() else "an unnamed method"
        return str(settings.get("quant_method") or by_bits)
    if getattr(config, "quantization", None) and any(name.endswith(".scales") for name in tensors):
        return "mlx"
    for pattern, method in SIGNS.items():
        if any(re.search(pattern, name) for name in tensors):
            return method
    return "fp8" if any(tensor.dtype in FP8 for tensor in tensors.values()) else ""


def is_fp8(tensors: Mapping[str, Typed]) -> bool:
    """Whether the only weights that are not plain numbers are 8-bit floats, so that torch alone can dequantize them."""
    weights = [tensor for name, tensor in tensors.items() if tensor.dtype not in PLAIN and not is_scale(name, tensors)]
    return bool(weights) and all(tensor.dtype in FP8 for tensor in weights)


def is_scale(name: str, tensors: Mapping[str, Typed]) -> bool:
    """Whether a tensor is the scale of a parameter that is stored too."""
    return any(name.endswith(ending) and name.removesuffix(ending) in tensors for ending in SCALES)


def block_size(config: PretrainedConfig) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where the configuration says so."""
    block = _settings(config).get("weight_block_size")
    return (int(block[0]), int(block[1])) if block else None


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name without its library."""
    return str(dtype).removeprefix("torch.")


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    described = getattr(config, "quantization_config", None) or {}
    return described if isinstance(described, dict) else dict(described.to_dict())
