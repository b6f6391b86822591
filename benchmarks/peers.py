"""What chainctl is compared with, one arm a process.  benchmarks/memory.py measures them from outside.

    python -m benchmarks.peers ARM --model DIR --task classify|lm --texts N --batch B --length S

full                the bottleneck adapters of chainctl on every layer, end to end, the model resident
full-checkpoint     the same with gradient checkpointing
lora                peft's LoRA (r = 8, queries and values)
lora-checkpoint     the same with gradient checkpointing
disk-checkpoint     `full-checkpoint` with accelerate's `device_map`: every layer on disk, read when it is needed
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stages.model.architecture import find_layers
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.tensors import fresh_adapters

ARMS = ("full", "full-checkpoint", "lora", "lora-checkpoint", "disk-checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--task", choices=["classify", "lm"], required=True)
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="chainctl-offload-") as offload:
        model = load(chosen.model, chosen.task, disk=offload if chosen.arm.startswith("disk") else None)
        parameters = add_lora(model) if chosen.arm.startswith("lora") else add_adapters(model, chosen.task)
        if chosen.arm.endswith("checkpoint"):
            model.train()  # transformers checkpoints in training mode only; there is no dropout in it (see `load`)
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with recompute_whole_layers() if chosen.arm.startswith("disk") else nullcontext():
            seconds, loss = train(model, parameters, chosen)
    steps = -(-chosen.texts // chosen.batch)
    print(json.dumps({"arm": chosen.arm, "steps": steps, "seconds_per_step": seconds, "loss": loss}))


def recompute_whole_layers() -> AbstractContextManager[None]:
    """Checkpointing that recomputes to the end of a layer.

    By default it stops at the last tensor that backward needs, before accelerate's hook has put the layer's last
    module (a LLaMA's `down_proj`) back on the disk: one such module a layer stays in memory, and the peer looks
    larger than it is.
    """
    from torch.utils.checkpoint import set_checkpoint_early_stop

    return set_checkpoint_early_stop(False)


def load(directory: Path, task: str, *, disk: str | None) -> Any:
    """The model as it is stored, frozen; with `disk` every layer is left there."""
    factory = AutoModelForCausalLM if task == "lm" else AutoModelForSequenceClassification
    options: dict[str, Any] = {"dtype": "auto"} | ({"num_labels": 2} if task == "classify" else {})
    if disk is not None:
        options |= {"device_map": device_map(directory, factory), "offload_folder": disk}
    model = factory.from_pretrained(directory, **options).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def device_map(directory: Path, factory: Any) -> dict[str, str]:
    """Layers on disk, the rest on the processor."""
    from transformers import AutoConfig

    with torch.device("meta"):
        model = factory.from_config(AutoConfig.from_pretrained(directory))
    layers = {id(layer) for layer in find_layers(model)[1]}
    places: dict[str, str] = {}

    def place(module: nn.Module, path: str) -> None:
        if id(module) in layers:
            places[path] = "disk"
        elif any(id(inner) in layers for inner in module.modules()):
            for name, child in module.named_children():
                place(child, f"{path}.{name}" if path else name)
        else:
            places[path] = "cpu"

    place(model, "")
    return places


def add_adapters(model: Any, task: str) -> list[Tensor]:
    """Bottleneck adapters on the output of every layer; what trains."""
    config = model.config
    tensors = fresh_adapters(
        range(config.num_hidden_layers), hidden_size=config.hidden_size, bottleneck=config.hidden_size // 16, seed=0
    )
    adapters = adapters_from_tensors(tensors, "silu" if task == "lm" else "relu")
    for index, layer in enumerate(find_layers(model)[1]):
        layer.register_forward_hook(after(adapters[index]))
    parameters = [value.requires_grad_() for adapter in adapters.values() for value in adapter.parameters()]
    if task == "classify":
        parameters += [value.requires_grad_() for value in model.classifier.parameters()]
    return parameters


def after(adapter: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A forward hook that adapts a layer's hidden states."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (adapter(output[0]), *output[1:])
        return adapter(output)

    return hook


def add_lora(model: Any) -> list[Tensor]:
    """peft's LoRA in place; what trains."""
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in ("query", "value", "q_proj", "v_proj") if name in names]
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=targets), model)
    parameters = [value for name, value in model.named_parameters() if "lora_" in name]
    classifier = getattr(model, "classifier", None)
    if classifier is not None:
        parameters += [value.requires_grad_() for value in classifier.parameters()]
    return parameters


def train(model: Any, parameters: list[Tensor], chosen: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a step (of the first, if it is alone) and the last loss."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    ids = torch.randint(4, model.config.vocab_size, (chosen.texts, chosen.length))
    steps: list[float] = []
    for first in range(0, chosen.texts, chosen.batch):
        began = time.perf_counter()
        batch = ids[first : first + chosen.batch]
        loss = forward(model, batch, chosen.task)
        loss.backward()
        missing = [parameter for parameter in parameters if parameter.grad is None]
        assert not missing, f"{len(missing)} parameters got no gradient"
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - began)
    timed = sorted(steps[1:] or steps)
    return round(timed[len(timed) // 2], 2), loss.item()


def forward(model: Any, batch: Tensor, task: str) -> Tensor:
    """The loss alone: logits that outlive their step would count in the peak of the next."""
    options = {"use_cache": False} if task == "lm" else {}
    labels = batch if task == "lm" else torch.arange(len(batch)) % 2
    loss: Tensor = model(input_ids=batch, attention_mask=torch.ones_like(batch), labels=labels, **options).loss
    return loss


if __name__ == "__main__":
    main()
