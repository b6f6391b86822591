"""Quantized checkpoints: 8-bit floats become what transformers makes of them, others are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from stages import import_model
from stages.doctor import examine
from stages.model_info import look
from stages.streaming.check import SETTINGS
from tests import fleet

Tensors = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of FP8


def save(folder: Path, change: Callable[[str, torch.Tensor], Tensors], family: str = "llama", **quantized: Any) -> Path:
    """A model with its projections changed, and a configuration that says so."""
    few: dict[str, Any] = {"num_local_experts": 2} if family == "mixtral" else {}
    fleet.save_model(folder, family, factory=AutoModelForCausalLM, **few)
    stored: Tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        stored |= change(name, value) if "layers." in name and value.dim() > 1 else {name: value}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    extra = {"quantization_config": quantized} if quantized else {}
    (folder / "config.json").write_text(json.dumps(config | extra))
    return folder


def by_blocks(value: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantized values, the scale of each block of a matrix, and what they stand for."""
    rows, columns = value.shape
    scales = torch.zeros(-(-rows // height), -(-columns // width))
    whole = torch.zeros_like(value)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            place = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
            scales[row, column] = value[place].abs().max() / LARGEST
            whole[place] = scales[row, column]
    quantized = (value / whole).to(FP8)
    return quantized, scales, quantized.float() * whole


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_blocks_of_8_bit_floats_are_what_transformers_makes_of_them(family: str, tmp_path: Path) -> None:
    def change(name: str, value: torch.Tensor) -> Tensors:
        if "gate.weight" in name:  # a router stays as it is
            return {name: value}
        quantized, scales, _ = by_blocks(value, 16, 16)
        return {name: quantized, f"{name}_scale_inv": scales}

    folder = save(
        tmp_path / "own",
        change,
        family,
        quant_method="fp8",
        activation_scheme="dynamic",
        weight_block_size=[16, 16],
        modules_to_not_convert=["gate", "lm_head"],
    )
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    done = import_model.run(folder, tmp_path / "model")
    assert done.notes == ("8-bit floats dequantized to float32",)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_8_bit_floats_without_any_scale_were_cast(tmp_path: Path) -> None:
    folder = save(tmp_path / "own", lambda name, value: {name: value.to(FP8)}, quant_method="fp8")
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    import_model.run(folder, tmp_path / "model", dtype="bfloat16")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, expected[name].to(torch.bfloat16)) for name, value in stored.items())


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [
        (10**6, 10**6, ()),  # one scale, as modelopt stores it
        (10**6, 10**6, (1,)),
        (1, 10**6, None),  # one per row, as compressed-tensors and FBGEMM do
        (1, 10**6, (-1,)),
        (24, 40, None),  # the last block of a row and of a column are smaller, as in DeepSeek's
    ],
)
def test_scales_of_every_kind(height: int, width: int, shape: tuple[int, ...] | None, tmp_path: Path) -> None:
    expected: Tensors = {}

    def change(name: str, value: torch.Tensor) -> Tensors:
        quantized, scales, expected[name] = by_blocks(value, height, width)
        serving = {name.replace("weight", "input_scale"): torch.ones(1)}
        return {name: quantized, f"{name}_scale": scales if shape is None else scales.reshape(shape), **serving}

    block: dict[str, Any] = {"weight_block_size": [height, width]} if height == 24 else {}
    folder = save(tmp_path / "own", change, quant_method="compressed-tensors", **block)
    import_model.run(folder, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in expected.items())


def test_scales_stored_as_exponents(tmp_path: Path) -> None:
    exponents = {"bytes": torch.uint8, "ue8m0": torch.float8_e8m0fnu}
    for kind, dtype in exponents.items():

        def change(name: str, value: torch.Tensor, dtype: torch.dtype = dtype) -> Tensors:
            return {name: value.to(FP8), f"{name}_scale_inv": torch.tensor([[124]], dtype=torch.uint8).view(dtype)}

        import_model.run(save(tmp_path / kind, change, quant_method="fp8"), tmp_path / f"{kind}-model")
        stored = load_file(tmp_path / f"{kind}-model" / "model.safetensors")
        own = load_file(tmp_path / kind / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(stored[name], own[name].float() / 8)


def test_shards_hold_scales_of_each_others_weights(tmp_path: Path) -> None:
    expected: Tensors = {}

    def change(name: str, value: torch.Tensor) -> Tensors:
        quantized, scales, expected[name] = by_blocks(value, 16, 16)
        return {name: quantized, f"{name}_scale_inv": scales}

    folder = save(tmp_path / "own", change, quant_method="fp8", weight_block_size=[16, 16])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: "b" if name.endswith("_scale_inv") else "a" for name in tensors}
    for file in ("a", "b"):
        part = {name: value for name, value in tensors.items() if places[name] == file}
        save_file(part, folder / f"{file}.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {name: f"{file}.safetensors" for name, file in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    import_model.run(folder, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in expected.items())


def test_a_scale_that_is_missing_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    def change(name: str, value: torch.Tensor) -> Tensors:
        scale = torch.ones(7, 1) if "up_proj" in name else torch.ones(1)
        return {name: value.to(FP8), f"{name}_scale": scale}

    folder = save(tmp_path / "own", change, quant_method="fp8")
    with pytest.raises(BadInput, match="do not fit it") as caught:
        import_model.run(folder, tmp_path / "model")
    assert caught.value.values["scales"] == [7, 1]
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj\.weight is stored as 8-bit floats without a scale"):
        import_model.run(folder, tmp_path / "model")


def bitsandbytes(name: str, value: torch.Tensor) -> Tensors:
    packed = torch.zeros(value.numel() // 2, 1, dtype=torch.uint8)
    return {name: packed, f"{name}.absmax": torch.ones(8), f"{name}.quant_map": torch.ones(16)}


def gptq(name: str, value: torch.Tensor) -> Tensors:
    stem = name.removesuffix("weight")
    packed = torch.zeros(value.shape[1] // 8, value.shape[0], dtype=torch.int32)
    return {
        f"{stem}qweight": packed,
        f"{stem}qzeros": packed[:1].clone(),
        f"{stem}scales": torch.ones(1, value.shape[0]),
    }


def compressed(name: str, value: torch.Tensor) -> Tensors:
    packed = torch.zeros(value.shape[0], value.shape[1] // 8, dtype=torch.int32)
    return {f"{name}_packed": packed, f"{name}_scale": torch.ones(value.shape[0], 1)}


def cast(name: str, value: torch.Tensor) -> Tensors:
    return {name: value.to(FP8)}


def unsigned(name: str, value: torch.Tensor) -> Tensors:
    stem = name.removesuffix("weight")
    return {name: torch.zeros(value.shape[0], value.shape[1] // 8, dtype=torch.uint32), f"{stem}scales": torch.ones(1)}


@pytest.mark.parametrize(
    ("change", "quantized", "named"),
    [
        (bitsandbytes, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        (bitsandbytes, {"load_in_4bit": True}, "bitsandbytes"),
        (bitsandbytes, {}, "bitsandbytes"),
        (gptq, {"quant_method": "gptq", "bits": 4}, "gptq"),
        (gptq, {"quant_method": "awq", "bits": 4}, "awq"),
        (gptq, {}, "gptq or awq"),
        (compressed, {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        (compressed, {}, "compressed-tensors"),
    ],
)
def test_other_methods_are_named_everywhere(
    change: Callable[[str, torch.Tensor], Tensors], quantized: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "own", change, **quantized)
    for opens in (
        lambda: examine(folder, fleet.settings()),
        lambda: look(folder, fleet.settings()),
        lambda: fleet.open_backbone(folder, SETTINGS["language-model"]),
        lambda: import_model.run(folder, tmp_path / "model"),
    ):
        with pytest.raises(BadInput, match="are quantized") as caught:
            opens()
        assert f"({named})" in caught.value.fact
        assert "take the model that it was made from" in caught.value.hint


def test_weights_of_mlx_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "own", unsigned)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}}))
    with pytest.raises(BadInput, match=r"quantized \(mlx\)") as caught:
        fleet.open_backbone(folder)
    assert "mlx_lm" in caught.value.hint


@pytest.mark.parametrize("quantized", [{"quant_method": "fp8"}, {}])
def test_the_hint_for_8_bit_floats_works(quantized: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path / "own", cast, **quantized)
    with pytest.raises(BadInput, match=r"quantized \(fp8\)") as caught:
        look(folder, fleet.settings())
    assert f"chainctl model import {folder} --out" in caught.value.hint
    import_model.run(folder, tmp_path / "model")
    look(tmp_path / "model", fleet.settings())


def test_what_was_dequantized_and_still_says_that_it_is_not(tmp_path: Path) -> None:
    folder = save(tmp_path / "own", lambda name, value: {name: value}, quant_method="gptq")
    with pytest.raises(BadInput, match=r"quantized \(gptq\)") as caught:
        look(folder, fleet.settings())
    assert 'remove "quantization_config" from config.json' in caught.value.hint
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    look(folder, fleet.settings())


def test_a_dtype_of_less_than_a_byte_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "own", lambda name, value: {name: value})
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"F4" ', 1))
    with pytest.raises(BadInput, match="is stored as F4"):
        look(folder, fleet.settings())
