"""Export as ONNX with torch's dynamo exporter, and check the file by running it at other lengths.

The older exporter silently fixes the lengths that it traced.  This one gets symbols for batch and sequence, and its
file must agree with the model in onnxruntime on three other shapes.
"""

import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.errors import BadInput, UsageProblem
from schemas.plan import PlanManifest
from stages.export import modeling
from stages.store.foreign import read_json

TRACED = (2, 12)  # batch and sequence
OTHERS = ((1, 5), (3, 17), (2, 31))
TOLERANCE = 1e-3  # of float32 logits, relative to the largest
FILE = "model.onnx"
ADVICE = "export --format hf instead, which supports every architecture"

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about operations of torchvision


def write_onnx(folder: Path, write_hf: Callable[[Path], None], plan: PlanManifest) -> tuple[str, ...]:
    """Write `model.onnx` (weights beside it where they are large); notes on how well it agrees.

    `write_hf` writes the model as transformers loads it.  Raises `BadInput` where the exporter or the agreement fails.
    """
    with tempfile.TemporaryDirectory(prefix="chainctl-onnx-", dir=folder) as scratch:
        write_hf(Path(scratch))
        with _loaded(Path(scratch)) as model:
            export(model, folder / FILE)
            shown = check(model, folder / FILE)
    notes = [f"agrees with the model at other lengths (largest relative difference; {shown})"]
    if plan.settings.numerics.computes_in != "float32":
        notes.append(f"it computes in float32, the federation in {plan.settings.numerics.computes_in}")
    return tuple(notes)


def need_the_extra() -> None:
    """Raises `UsageProblem` where the extra is missing."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageProblem(
            "exporting ONNX needs packages that are not installed",
            values={"missing": error.name or "onnxruntime"},
            hint="pip install 'chainctl[export]'",
        ) from None


@contextmanager
def _loaded(folder: Path) -> Iterator["LogitsOnly"]:
    """The exported folder in float32, returning logits alone.

    Its code is imported in place: `trust_remote_code` would leave a copy in transformers' cache.
    """
    name = modeling.FILE.removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, folder / modeling.FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where transformers looks for it
    try:
        spec.loader.exec_module(module)
        (chosen,) = read_json(folder / "config.json")["architectures"]
        # Eager attention: the exporter supports every operation in it.
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
        yield LogitsOnly(getattr(module, chosen).from_pretrained(folder, **options)).eval()
    finally:
        del sys.modules[name]


class LogitsOnly(torch.nn.Module):
    """(ids, mask) to logits, the inputs and output of the ONNX session."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.config.use_cache = False
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits of the model, float32."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def export(model: LogitsOnly, path: Path) -> None:
    """Trace with symbols for both dimensions.  Raises `BadInput`."""
    axes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("sequence", min=2, max=2**20)}
    names = ("input_ids", "attention_mask")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                example(TRACED),
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(names, axes),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        forget_origins(program.model)
        program.save(str(path), external_data=True)
    except Exception as error:  # the exporter raises many kinds
        raise BadInput(
            "torch cannot export this architecture to ONNX", values={"reason": type(error).__name__}, hint=ADVICE
        ) from error


def forget_origins(model: Any) -> None:
    """Remove the exporter's notes on each operation: source lines, with the folders of this machine."""
    model.metadata_props.clear()
    for graph in model.graphs():
        nodes = list(graph)
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
        for part in (graph, *nodes, *values):
            part.metadata_props.clear()
            part.doc_string = None


def check(model: LogitsOnly, path: Path) -> str:
    """How far the file is from the model at each of `OTHERS`.  Raises `BadInput` where that is too far."""
    try:
        differences = [agreement(model, path, shape) for shape in OTHERS]
    except Exception as error:  # the runtime raises many kinds
        raise BadInput(
            "the exported file does not run at other lengths",
            values={"traced with": "{} x {}".format(*TRACED), "reason": type(error).__name__},
            hint=ADVICE,
        ) from error
    shown = ", ".join(
        f"{rows} x {length}: {found:.1e}" for (rows, length), found in zip(OTHERS, differences, strict=True)
    )
    if not all(found <= TOLERANCE for found in differences):  # also true for NaN
        raise BadInput(
            "the exported file does not agree with the model",
            values={"largest relative difference allowed": f"{TOLERANCE:.0e}", "found": shown},
            hint=f"{ADVICE}, and please report this",
        )
    return shown


def agreement(model: LogitsOnly, path: Path, shape: tuple[int, int]) -> float:
    """Largest difference on some other batch, relative to the largest logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids, mask = example(shape)
    (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        expected = model(ids, mask).numpy()
    real = mask.numpy().astype(bool) if expected.ndim == 3 else slice(None)
    return float(np.abs(found - expected)[real].max() / np.abs(expected[real]).max())


def example(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask (B, S) whose last row is padded."""
    ids = torch.arange(shape[0] * shape[1]).view(shape) % 50 + 3
    mask = torch.ones_like(ids)
    mask[-1, -1 - shape[1] // 3 :] = 0
    return ids, mask
