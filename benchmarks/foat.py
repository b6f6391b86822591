"""How the settings of FOAT's similarity read the same decoder: docs/foat-decoders.md and its picture.

    python -m benchmarks.foat [--model DIR] [--work DIR] [--page-only]

SmolLM2-135M-Instruct (the asset, imported from its GGUF file; or --model) on 256 BBC news texts of at most 128 tokens.
The texts pass the model once; every setting of `similarity` is computed from the same hidden states: which tokens,
their scale, the pooling, the reference and the estimator.  Writes benchmarks/results/foat.json; --page-only makes the
page and the picture of it again.  Assets: CHAINCTL_CACHE, or what pip fetches.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import foat_page
from benchmarks.attention_sinks import Sinks
from benchmarks.harness import RESULTS, save
from schemas.methods import ChainSettings
from schemas.profile import LayerSimilarity
from schemas.settings import EncodingSettings, NumericsSettings, Settings, SimilaritySettings, TaskSettings
from stages import import_model
from stages.assets import ASSETS, get_asset
from stages.data.load import Example, load_examples
from stages.methods.chain.server import choose_start
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.similarity.cka import cka, cka_with_interval, gram
from stages.similarity.pooling import draw_rows, features
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import FASTEST
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED

TEXTS = 256
WINDOW_SIZE = 2
THRESHOLDS = (0.8, 0.9)
CHOICES: dict[str, tuple[str, ...]] = {
    "tokens": ("all", "skip-first"),
    "scale": ("none", "unit"),
    "pooling": ("mean", "last", "tokens"),
    "reference": ("embeddings", "first-layer"),
    "estimator": ("unbiased", "biased"),
}
PER_FEATURE = ("tokens", "scale", "pooling")  # what one Gram matrix depends on
SETTINGS = Settings(
    task=TaskSettings(kind="causal-lm"),
    encoding=EncodingSettings(max_length=128),
    numerics=NumericsSettings(micro_batch=4, threads=1),
)


def every_setting(**fixed: Any) -> list[SimilaritySettings]:
    """All combinations of `CHOICES`."""
    combinations = itertools.product(*CHOICES.values())
    return [
        SimilaritySettings.model_validate(dict(zip(CHOICES, values, strict=True)) | fixed) for values in combinations
    ]


@dataclass
class Curves:
    """CKA by layer under every setting, while the model passes once.

    Of the settings in `precise` each value has its jackknife interval; of the others low and high are the value.
    """

    texts: EncodedTexts
    settings: Sequence[SimilaritySettings]
    seed: int
    precise: Sequence[SimilaritySettings] = ()
    curves: dict[SimilaritySettings, list[LayerSimilarity]] = field(default_factory=dict)
    references: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    def after_layer(self, layer: int, hidden: HiddenStates) -> None:
        """Gram matrices of what left `layer` (-1: the embeddings), one for each kind of feature row."""
        for kind in dict.fromkeys(_kind(setting) for setting in self.settings):
            mine = [setting for setting in self.settings if _kind(setting) == kind]
            rows = draw_rows(self.texts.lengths, mine[0], np.random.Generator(np.random.PCG64(self.seed)))
            kernel = gram(features(hidden, rows, mine[0]), mine[0].kernel)
            for reference in CHOICES["reference"]:
                if layer == (-1 if reference == "embeddings" else 0):
                    self.references[*kind, reference] = kernel
            for setting in mine if layer >= 0 else ():
                start = self.references[*kind, setting.reference]
                self.curves.setdefault(setting, []).append(self._point(setting, start, kernel))

    def _point(self, setting: SimilaritySettings, reference: np.ndarray, kernel: np.ndarray) -> LayerSimilarity:
        if setting in self.precise:
            value, low, high = cka_with_interval(reference, kernel, setting.estimator)
            return LayerSimilarity(cka=value, low=low, high=high)
        value = cka(reference, kernel, setting.estimator)
        return LayerSimilarity(cka=value, low=value, high=value)


def measure(
    backbone: Backbone,
    texts: EncodedTexts,
    settings: Sequence[SimilaritySettings],
    *,
    scratch: Path,
    precise: Sequence[SimilaritySettings] = (),
    seed: int = 0,
) -> tuple[dict[SimilaritySettings, list[LayerSimilarity]], Sinks]:
    """The curve of each setting, and what attention sinks do; the model passes once."""
    curves, sinks = Curves(texts, settings, seed, precise), Sinks()

    def after_layer(layer: int, hidden: HiddenStates) -> None:
        curves.after_layer(layer, hidden)
        sinks.after_layer(layer, hidden)
        print(f"layer {layer + 1} of {backbone.num_layers}", end="\r", file=sys.stderr, flush=True)

    with hidden_states(backbone, texts, FASTEST, scratch=scratch) as hidden:
        run_prefix(backbone, texts, hidden, UNTUNED, stop=backbone.num_layers, after_layer=after_layer)
    return curves.curves, sinks


def start_layer(curve: Sequence[LayerSimilarity], threshold: float) -> dict[str, Any]:
    """What `plan` would choose: the layer, why, and the range that the intervals allow."""
    chain, few = ChainSettings(foresight="adapters", cka_threshold=threshold), SETTINGS.similarity.min_examples
    start, reason, between = choose_start(chain, len(curve), curve, WINDOW_SIZE, few)
    return {"start": start, "reason": reason, "between": list(between)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--page-only", action="store_true")
    chosen = parser.parse_args()
    if not chosen.page_only:
        with tempfile.TemporaryDirectory(prefix="chainctl-foat-") as folder:
            save("foat", run(chosen.model, chosen.work or Path(folder)))
    foat_page.write(json.loads((RESULTS / "foat.json").read_text()))


def run(model_dir: Path | None, work: Path) -> dict[str, Any]:
    """Everything that the page says, as numbers."""
    model_dir = model_dir or imported(work / "smollm2-135m")
    began = time.perf_counter()
    torch.set_num_threads(SETTINGS.numerics.threads)
    model = LoadedModel.open(model_dir, SETTINGS)
    texts = EncodedTexts.encode(draw_texts(get_asset(ASSETS["bbc-news"], say=print)), model.encoder, 4)
    settings = every_setting()
    precise = [setting for setting in settings if is_precise(setting)]
    curves, sinks = measure(model.backbone, texts, settings, scratch=work, precise=precise)
    return {
        "model": "SmolLM2-135M-Instruct",
        "fingerprint": model.backbone.reader.fingerprint().digest,
        "texts": len(texts.rows),
        "tokens": texts.token_count,
        "max_length": SETTINGS.encoding.most_tokens,
        "window_size": WINDOW_SIZE,
        "curves": [entry(setting, curve, precise=setting in precise) for setting, curve in curves.items()],
        "sinks": sinks.results(),
        "seconds": round(time.perf_counter() - began),
    }


def is_precise(setting: SimilaritySettings) -> bool:
    """The settings whose intervals are worth their time: mean of all tokens at unit length, unbiased."""
    return (setting.tokens, setting.scale, setting.pooling, setting.estimator) == ("all", "unit", "mean", "unbiased")


def imported(target: Path) -> Path:
    """The model directory of the asset."""
    if not target.exists():
        import_model.run(get_asset(ASSETS["smollm2-135m"], say=print), target)
    return target


def draw_texts(folder: Path) -> list[Example]:
    """`TEXTS` of all texts, drawn once and for all."""
    examples = load_examples(folder)
    drawn = np.random.Generator(np.random.PCG64(0)).permutation(len(examples))[:TEXTS]
    return [examples[index] for index in sorted(drawn.tolist())]


def entry(setting: SimilaritySettings, curve: Sequence[LayerSimilarity], *, precise: bool) -> dict[str, Any]:
    """One setting in the results."""
    row: dict[str, Any] = {name: getattr(setting, name) for name in CHOICES}
    row["cka"] = [round(point.cka, 4) for point in curve]
    if precise:
        row["low"] = [round(point.low, 4) for point in curve]
        row["high"] = [round(point.high, 4) for point in curve]
    row["starts"] = {str(threshold): start_layer(curve, threshold) for threshold in THRESHOLDS}
    return row


def _kind(setting: SimilaritySettings) -> tuple[str, ...]:
    return tuple(getattr(setting, name) for name in PER_FEATURE)


if __name__ == "__main__":
    main()
