"""What `export --format adapterhub` writes, with the values that it must give: one half of `just adapterhub`.

    python -m benchmarks.adapterhub_write DIR

For each family: DIR/<family>/model (a tiny random model), adapter (the export) and expected.npz (token ids, mask, the
last layer's output of our streamed chain and, where the library builds such a head, logits).  The other half runs where
the `adapters` library is.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.export.export import Source, run
from stages.streaming.stream import stream_layers
from stages.streaming.texts import EncodedTexts
from tests import fleet
from tests.fleet.federation import LANGUAGE, Federation

FAMILIES = ("bert", "roberta", "distilbert", "llama")


def main() -> None:
    """Write every family."""
    out = Path(sys.argv[1])
    for family in FAMILIES:
        own = LANGUAGE if family == "llama" else {"head": {"form": "transformers"}}
        chosen = fleet.settings(**own, chain={"start": 1})
        federation = Federation(out / family, family, chosen)
        run(**federation.inputs(), out=out / family / "adapter", format="adapterhub")
        expected: dict[str, Any] = dict(zip(("ids", "mask", "hidden"), last_hidden(federation), strict=True))
        if family != "llama":
            expected["logits"] = federation.answers()[1].numpy()
        np.savez(out / family / "expected.npz", **expected)


@torch.no_grad()
def last_hidden(federation: Federation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids and mask (B, S), and what leaves the bare model (B, S, D), streamed: a decoder has a last norm."""
    source = Source.open(federation.model_dir, federation.folder / "plan", federation.state, verify="always")
    backbone = source.backbone
    batch = EncodedTexts.encode(fleet.examples(fleet.texts(5)), source.encoder, 5).batch(range(5))
    hidden = backbone.embed(batch)
    for layer, weights in stream_layers(backbone, range(backbone.num_layers)):
        hidden = backbone.run_layers({layer: weights}, hidden, batch, source.tuning)
    if backbone.skeleton.head_form == "language-model":
        hidden = backbone.skeleton.run_to_vocabulary(
            batch, lambda index, flowing, apply: hidden if index == backbone.num_layers - 1 else flowing
        )
    return batch.input_ids.numpy(), batch.attention_mask.numpy(), hidden.numpy()


if __name__ == "__main__":
    main()
