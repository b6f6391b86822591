"""Profile stage: how far does each layer move what flows through it away from the input?

Chain:  [profile] -> plan -> train-window -> aggregate -> eval
Reads:  a base model directory and a device's texts.
Writes: a profile artifact: one CKA value a layer (Eq. 3 and 4) with its interval, and the device's memory budget.

The texts go through the frozen model block by block; labels are not read.
"""

from pathlib import Path

import numpy as np
import torch

from schemas.base import canonical_json, sha256_digest
from schemas.measured import TextCounts
from schemas.profile import LayerSimilarity, ProfileManifest
from schemas.refs import ModelFingerprint
from schemas.settings import Settings, SimilaritySettings
from stages.data.load import Example, data_digest, load_examples
from stages.memory.predict import MemoryModel, fit
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.model.skeleton import is_decoder
from stages.process import seeds
from stages.process.measure import MeasuredFacts, Stopwatch, device_memory_bytes, resident_bytes
from stages.process.progress import Progress, silent
from stages.similarity.cka import cka_with_interval, gram
from stages.similarity.pooling import draw_rows, features
from stages.store.artifact import Artifact, existing, new_artifact
from stages.store.signing import Signer
from stages.streaming.check import check_architecture
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import FASTEST, Placement
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts


def run(
    *,
    model_dir: Path,
    data: Path,
    settings: Settings,
    device: str,
    memory_budget_bytes: int | None,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
    model: LoadedModel | None = None,
    fingerprint: ModelFingerprint | None = None,
    signer: Signer | None = None,
) -> Artifact[ProfileManifest]:
    """Profile one device.  `model` and `fingerprint` spare a caller with many devices opening the model again.

    Raises `BadInput` for data or a model that cannot be used, `UsageProblem` where `out` holds something else.
    """
    examples = load_examples(data, text_column=settings.task.text_column, label_column=None, prompt=settings.prompt)
    numerics = settings.numerics.decided(settings.encoding.max_length)
    settings = settings.model_copy(update={"numerics": numerics})
    budget = memory_budget_bytes or device_memory_bytes()
    simulated = model is not None  # one process is many devices, and keeps none of their budgets
    with Stopwatch(None if simulated else budget) as watch:
        check_architecture(model_dir, settings.head_form, packing=settings.encoding.packing)
        model = model or LoadedModel.open(model_dir, settings)
        fingerprint = fingerprint or model.backbone.reader.fingerprint()
        draft = _describe(fingerprint, examples, settings, model, device=device, budget=budget)
        found = existing(
            out, ProfileManifest, same=lambda there: _same_inputs(there, draft), force=force, signer=signer
        )
        if found is not None:
            return found
        checkpoint = model.backbone.reader.files
        before = checkpoint.bytes_read
        sample = _sample(examples, draft.similarity, seed=settings.seed, device=device)
        layers: tuple[LayerSimilarity, ...] = ()
        layer_seconds: tuple[float, ...] = ()
        predicted: int | None = None
        counts: TextCounts | None = None
        if len(sample) >= draft.similarity.min_examples:
            texts = EncodedTexts.encode(sample, model.encoder, settings.numerics.rows)
            counts = texts.counts()
            placement = FASTEST
            if not simulated:
                longest = max(texts.lengths)
                memory = MemoryModel(model.backbone, settings, 0, texts.token_count, resident_bytes(), longest)
                placement, predicted = fit(memory.forward, budget, what="the profile")
            layers, layer_seconds = measure_similarity(
                model.backbone,
                texts,
                settings,
                draft.similarity,
                placement=placement,
                scratch=out.parent,
                progress=watch.over(progress),
            )
    manifest = draft.model_copy(update={"layers": layers, "profiled_count": len(sample) if layers else 0})
    facts = MeasuredFacts(
        predicted_peak_bytes=predicted,
        seconds=watch.seconds,
        peak_bytes=watch.peak_bytes,
        bytes_streamed=checkpoint.bytes_read - before,
        texts=counts,
        layer_seconds=layer_seconds,
    )
    with new_artifact(out, force=force, signer=signer) as artifact:
        artifact.finish(manifest, facts)
    return Artifact(out, manifest, manifest.digest)


def measure_similarity(
    backbone: Backbone,
    texts: EncodedTexts,
    settings: Settings,
    similarity: SimilaritySettings,
    *,
    placement: Placement,
    scratch: Path,
    progress: Progress,
) -> tuple[tuple[LayerSimilarity, ...], tuple[float, ...]]:
    """CKA of each layer's output with the reference, and seconds a layer; the model passes once."""
    torch.set_num_threads(settings.numerics.threads)
    generator = np.random.Generator(np.random.PCG64(settings.seed))
    rows = draw_rows(texts.lengths, similarity, generator)
    reference_layer = -1 if similarity.reference == "embeddings" else 0
    reference: list[np.ndarray] = []
    curve: list[LayerSimilarity] = []
    seconds: list[float] = []

    def after_layer(layer: int, hidden: HiddenStates) -> None:
        kernel = gram(features(hidden, rows, similarity), similarity.kernel)
        if layer == reference_layer:
            reference.append(kernel)
        if layer >= 0:
            value, low, high = cka_with_interval(reference[0], kernel, similarity.estimator)
            curve.append(LayerSimilarity(cka=value, low=low, high=high))

    scratch.mkdir(parents=True, exist_ok=True)
    with hidden_states(backbone, texts, placement, scratch=scratch) as hidden:
        run_prefix(
            backbone,
            texts,
            hidden,
            {},
            stop=backbone.num_layers,
            prefetch=placement.prefetch,
            after_layer=after_layer,
            layer_seconds=seconds.append,
            progress=progress,
        )
    return tuple(curve), tuple(seconds)


def decide(similarity: SimilaritySettings, *, decoder: bool) -> SimilaritySettings:
    """Settings with `auto` resolved: unit scale for decoders (attention sinks), none for encoders."""
    if similarity.scale != "auto":
        return similarity
    return similarity.model_copy(update={"scale": "unit" if decoder else "none"})


def _describe(
    fingerprint: ModelFingerprint,
    examples: list[Example],
    settings: Settings,
    model: LoadedModel,
    *,
    device: str,
    budget: int,
) -> ProfileManifest:
    """The manifest before anything is measured."""
    # Salted with the model and the device, so that nobody can confirm a guess of the texts across federations.
    salt = canonical_json(["profile", fingerprint.digest, device]).decode()
    return ProfileManifest(
        device=device,
        model=fingerprint,
        inputs=sha256_digest(canonical_json([data_digest(examples, salt=salt), settings.seed])),
        example_count=len(examples),
        profiled_count=0,
        memory_budget_bytes=budget,
        prompt=model.encoder.prompt,
        encoding=settings.encoding,
        similarity=decide(settings.similarity, decoder=is_decoder(model.backbone.skeleton.config)),
        numerics=settings.numerics,
        layers=(),
    )


def _same_inputs(there: ProfileManifest, draft: ProfileManifest) -> bool:
    return there.model_copy(update={"layers": (), "profiled_count": 0}) == draft


def _sample(examples: list[Example], settings: SimilaritySettings, *, seed: int, device: str) -> list[Example]:
    """At most `max_examples` texts, drawn from the seed and the device, in order of the data."""
    generator = seeds.generator("profile", seed, device)
    drawn = generator.permutation(len(examples))[: settings.max_examples]
    return [examples[index] for index in sorted(drawn.tolist())]
