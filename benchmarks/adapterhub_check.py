"""Does AdapterHub's library give the values of our chain?  The other half of `just adapterhub`.

    python benchmarks/adapterhub_check.py DIR

Runs in an environment of its own (that library pins an older transformers) and imports nothing of ours.  Fails where
the largest difference is above 1e-5, or where the adapter makes none.
"""

import sys
from pathlib import Path

import adapters
import numpy as np
import torch
from adapters import AutoAdapterModel

TOLERANCE = 1e-5


def inputs(expected):
    return {"input_ids": torch.from_numpy(expected["ids"]), "attention_mask": torch.from_numpy(expected["mask"])}


@torch.no_grad()
def hidden_of(model, expected):
    """What leaves the bare model (B, S, D)."""
    return model.base_model(**inputs(expected)).last_hidden_state.numpy()


@torch.no_grad()
def check_head(model, family, expected):
    """Logits (B, labels), by the head that came with the adapter."""
    if "logits" not in expected:
        assert "chainctl" not in model.heads, f"{family}: a head that nobody trained"
        return
    difference = np.abs(model(**inputs(expected)).logits.numpy() - expected["logits"]).max()
    print(f"{family:<12} largest difference {difference:.1e} of the logits, labels {model.get_labels()}")
    assert difference <= TOLERANCE, family
    assert model.get_labels() == ["tide", "root"], family  # by index


def main():
    """Compare every family."""
    print(f"adapters {adapters.__version__}")
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        expected = np.load(folder / "expected.npz")
        real = expected["mask"].astype(bool)
        model = AutoAdapterModel.from_pretrained(folder / "model").eval()
        before = np.abs(hidden_of(model, expected) - expected["hidden"])[real].max()
        name = model.load_adapter(str(folder / "adapter"), use_safetensors=True)
        model.set_active_adapters(name)
        model.eval()
        after = np.abs(hidden_of(model, expected) - expected["hidden"])[real].max()
        print(f"{folder.name:<12} largest difference {after:.1e} (without the adapter {before:.1e})")
        assert after <= TOLERANCE < before, folder.name
        check_head(model, folder.name, expected)


if __name__ == "__main__":
    main()
