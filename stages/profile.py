"""Profile stage: how far does each layer move what flows through it away from the input?

Chain:  [profile] -> plan -> train-window -> aggregate -> eval
Reads:  a base model directory and a device's texts.
Writes: a profile artifact: one CKA value a layer (Eq. 3 and 4) with its interval, and the device's memory budget.

The texts go through the frozen model block by block, in float32 whatever the plan will decide; labels are not read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from schemas.base import canonical_json, sha256_digest
from schemas.errors import BadInput
from schemas.profile import LayerSimilarity, ProfileManifest
from schemas.refs import ModelFingerprint
from schemas.settings import Settings, SimilaritySettings
from stages.data.encode import Encoder
from stages.data.lengths import text_lengths
from stages.data.load import Example, data_digest, load_examples
from stages.memory.predict import MemoryModel
from stages.model.architecture import is_decoder
from stages.model.backbone import Backbone
from stages.process import seeds
from stages.process.arithmetic import native_dtypes
from stages.process.progress import Progress, silent
from stages.session import Machine, Session
from stages.similarity.cka import cka_with_interval, gram
from stages.similarity.pooling import draw_rows, features
from stages.store.artifact import Artifact, check_place, existing, new_artifact
from stages.store.recorded import expect_seconds
from stages.store.signing import Signer
from stages.streaming.check import refuse_unlike
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED
from stages.weights.finite import check_finite
from stages.weights.names import stored
from stages.weights.reader import Reader


def run(
    *,
    machine: Machine,
    data: Path,
    settings: Settings,
    device: str,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
    fingerprint: ModelFingerprint | None = None,
    signer: Signer | None = None,
) -> Artifact[ProfileManifest]:
    """Profile one device.  `fingerprint` spares a caller with many devices hashing the model again.

    Raises `BadInput` for data or a model that cannot be used, `UsageProblem` where `out` holds something else.
    """
    check_place(out, ProfileManifest, machine.model_dir, data, force=force, signer=signer)
    examples = load_examples(data, text_column=settings.task.text_column, label_column=None, prompt=settings.prompt)
    settings = settings.model_copy(update={"numerics": settings.numerics.computing_in("float32")})
    with Session.open(machine, settings, expected=None, beside=out.parent, progress=progress) as session:
        refuse_unlike(machine.model_dir, settings.head_form, packing=settings.encoding.packing)
        encoder = session.read_up_to_the_limit()
        fingerprint = fingerprint or session.backbone.reader.fingerprint()
        draft = _describe(fingerprint, examples, session, encoder, device=device)
        found = existing(
            out, ProfileManifest, same=lambda there: _same_inputs(there, draft), force=force, signer=signer
        )
        if found is not None:
            return found
        expect_seconds(out, ProfileManifest, lambda there: _same_work(there, draft))
        sample = _sample(examples, draft.similarity, seed=settings.seed, device=device)
        measured = Measurement()
        if len(sample) >= draft.similarity.min_examples:
            texts = EncodedTexts.encode(sample, encoder, session.settings.numerics.rows)
            if has_curve(texts, draft.similarity):
                measured = measure(session, texts, draft.similarity, fingerprint)
    profiled = len(sample) if measured.layers else 0
    manifest = draft.model_copy(update={"layers": measured.layers, "profiled_count": profiled})
    with new_artifact(out, force=force, signer=signer) as artifact:
        artifact.finish(manifest, session.measured(measured.texts, layer_seconds=measured.layer_seconds))
    return Artifact(out, manifest, manifest.digest)


@dataclass(frozen=True)
class Measurement:
    """CKA of each layer and seconds per layer; nothing where there are too few texts, or all are alike."""

    layers: tuple[LayerSimilarity, ...] = ()
    layer_seconds: tuple[float, ...] = ()
    texts: EncodedTexts | None = None


def has_curve(texts: EncodedTexts, similarity: SimilaritySettings) -> bool:
    """Whether texts differ enough for CKA, which is 0/0 where none differs from the others, and for its interval.

    The interval leaves one out, and the unbiased estimator is 0/0 where one alone differs too.
    """
    units = [token for row in texts.rows for token in row] if similarity.pooling == "tokens" else texts.rows
    alike = Counter(unit.tobytes() for unit in units)
    differing = alike.total() - max(alike.values())
    return differing >= (3 if similarity.estimator == "unbiased" else 2)


def measure(
    session: Session, texts: EncodedTexts, similarity: SimilaritySettings, fingerprint: ModelFingerprint
) -> Measurement:
    """Pass the texts through the frozen model, keeping the budget.  Raises `DoesNotFit`."""
    placement = session.place(MemoryModel.forward, MemoryModel.forward_scratch, texts, bottleneck=0, what="the profile")
    directory = session.machine.cache
    layers, seconds = measure_similarity(
        session.backbone,
        texts,
        session.settings,
        similarity,
        placement=placement,
        scratch=session.scratch,
        progress=session.progress,
        cache=PrefixCache(directory, fingerprint, session.settings, UNTUNED, texts) if directory else None,
    )
    return Measurement(layers, seconds, texts)


def measure_similarity(
    backbone: Backbone,
    texts: EncodedTexts,
    settings: Settings,
    similarity: SimilaritySettings,
    *,
    placement: Placement,
    scratch: Path,
    progress: Progress,
    cache: PrefixCache | None = None,
) -> tuple[tuple[LayerSimilarity, ...], tuple[float, ...]]:
    """CKA of each layer's output with the reference, and seconds per layer; the model is run once.

    What arrives at the first layer that the method may tune, and what that layer makes of it, goes to the `cache`: a
    plan that follows this curve and computes in float32, as profiles do, begins there in every round.  One that
    computes in another dtype has other hidden states, and reads none of these.
    """
    torch.set_num_threads(settings.numerics.threads)
    generator = np.random.Generator(np.random.PCG64(settings.seed))
    curve = _Curve(backbone.reader, settings, similarity, draw_rows(texts.lengths, similarity, generator), cache)
    seconds: list[float] = []
    scratch.mkdir(parents=True, exist_ok=True)
    with hidden_states(backbone, texts, placement, scratch=scratch) as hidden:
        run_prefix(
            backbone,
            texts,
            hidden,
            UNTUNED,
            stop=backbone.num_layers,
            prefetch=placement.prefetch,
            after_layer=curve.after_layer,
            layer_seconds=seconds.append,
            progress=progress,
        )
    return tuple(curve.layers), tuple(seconds)


@dataclass
class _Curve:
    """CKA with the reference, a layer at a time; `rows`: (text, token) pairs, as `draw_rows` draws them."""

    reader: Reader
    settings: Settings
    similarity: SimilaritySettings
    rows: Sequence[tuple[int, int]]
    cache: PrefixCache | None
    layers: list[LayerSimilarity] = field(default_factory=list)
    _reference: np.ndarray | None = None

    def after_layer(self, layer: int, hidden: HiddenStates) -> None:
        """Compare what left a layer (the embeddings: -1) with the reference, and keep it if a round begins there."""
        x_ND = features(hidden, self.rows, self.similarity)
        if not np.isfinite(x_ND).all():
            raise _not_finite(self.reader, layer)
        kernel = gram(x_ND, self.similarity.kernel)
        if layer == (-1 if self.similarity.reference == "embeddings" else 0):
            self._reference = kernel
        if layer < 0:
            return
        assert self._reference is not None
        value, low, high = cka_with_interval(self._reference, kernel, self.similarity.estimator)
        self.layers.append(LayerSimilarity(cka=value, low=low, high=high))
        if self.cache is not None and all(map(self._freezes, range(layer), self.layers)):
            self.cache.store(layer + 1, hidden)
            if layer > 0:
                self.cache.forget(layer - 1)

    def _freezes(self, layer: int, similarity: LayerSimilarity) -> bool:
        return self.settings.chain.freezes(layer, similarity.cka)


def _not_finite(reader: Reader, layer: int) -> BadInput:
    """The error for hidden states that are not finite.  Raises its own where a weight is the reason."""
    own = reader.names.stored_layer(layer) if layer >= 0 else []
    check_finite(reader.files, [*own, *stored([reader.names.embeddings]), *reader.names.stored_rest()])
    return BadInput(
        "the hidden states are not finite numbers, though all weights are",
        values={"after": f"layer {layer}" if layer >= 0 else "the embeddings", "in": "float32"},
        hint="the weights are too large to compute with, so the model is damaged: get it again",
    )


def decide(similarity: SimilaritySettings, *, decoder: bool) -> SimilaritySettings:
    """Settings with `auto` resolved: unit scale for decoders (attention sinks), none for encoders."""
    if similarity.scale != "auto":
        return similarity
    return similarity.model_copy(update={"scale": "unit" if decoder else "none"})


def _describe(
    fingerprint: ModelFingerprint,
    examples: list[Example],
    session: Session,
    encoder: Encoder,
    *,
    device: str,
) -> ProfileManifest:
    """The manifest before anything is measured."""
    # Salted with the model and the device, so that nobody can confirm a guess of the texts across federations.
    settings = session.settings
    salt = canonical_json(["profile", fingerprint.digest, device]).decode()
    return ProfileManifest(
        device=device,
        model=fingerprint,
        inputs=sha256_digest(canonical_json([data_digest(examples, salt=salt), settings.seed])),
        example_count=len(examples),
        profiled_count=0,
        memory_budget_bytes=session.machine.budget_bytes,
        prompt=encoder.prompt,
        encoding=settings.encoding,
        lengths=text_lengths(examples, encoder),
        similarity=decide(settings.similarity, decoder=is_decoder(session.backbone.skeleton.config)),
        numerics=settings.numerics,
        native_dtypes=native_dtypes(),
        layers=(),
    )


def _same_inputs(there: ProfileManifest, draft: ProfileManifest) -> bool:
    """Made from the same texts and settings.  What the processor multiplies is measured, and no input."""
    ours = {"layers": (), "profiled_count": 0, "native_dtypes": draft.native_dtypes}
    return there.model_copy(update=ours) == draft


def _same_work(there: ProfileManifest, draft: ProfileManifest) -> bool:
    """A profile of as many texts by the same device, with the same model."""
    alike = (draft.device, draft.model, draft.encoding, draft.example_count)
    return (there.device, there.model, there.encoding, there.example_count) == alike


def _sample(examples: list[Example], settings: SimilaritySettings, *, seed: int, device: str) -> list[Example]:
    """At most `max_examples` texts, drawn from the seed and the device, in order of the data."""
    generator = seeds.generator("profile", seed, device)
    drawn = generator.permutation(len(examples))[: settings.max_examples]
    return [examples[index] for index in sorted(drawn.tolist())]
