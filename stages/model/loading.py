"""A model with its tokenizer, opened once for one stage or, in a simulation, for many."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from schemas.refs import Dtype, ModelFingerprint
from schemas.settings import Settings
from stages.data.encode import Encoder
from stages.model.backbone import Backbone
from stages.store.cache_directory import CacheDirectory
from stages.weights.files import FLOAT_DTYPES
from stages.weights.reader import Verify


@dataclass(frozen=True)
class LoadedModel:
    """A backbone and its encoder."""

    backbone: Backbone
    encoder: Encoder

    @classmethod
    def open(
        cls,
        model_dir: Path,
        settings: Settings,
        *,
        expected: ModelFingerprint | None = None,
        verify: Verify = "once",
        cache: CacheDirectory | None = None,
    ) -> "LoadedModel":
        """Open both.  Raises `BadInput` and, where the model is not `expected`, `NotTrusted`."""
        encoder = Encoder.load(model_dir, settings.encoding, settings.prompt)
        backbone = Backbone.open(
            model_dir, settings, pad_id=encoder.pad_id, expected=expected, verify=verify, cache=cache
        )
        return cls(backbone, encoder)

    def reading(self, settings: Settings) -> "tuple[Settings, LoadedModel]":
        """Settings with a number of tokens, for whoever reads texts before a plan decides, and the model that reads so.

        `auto` becomes the model's limit.
        """
        encoding = settings.encoding.reading(self.backbone.position_limit)
        return settings.model_copy(update={"encoding": encoding}), replace(self, encoder=self.encoder.reading(encoding))

    def deciding_compute(self, settings: Settings, *, native: Collection[Dtype]) -> "tuple[Settings, LoadedModel]":
        """Settings with the dtype that computes decided, and the model opened in it.

        `auto` becomes bfloat16 where the layers are stored in it and it is among `native`, the dtypes that every device
        multiplies in hardware.  A model that is stored in float32 is never rounded unasked.
        """
        backbone, numerics = self.backbone, settings.numerics
        if numerics.compute == "auto":
            both = backbone.reader.names.dtype == torch.bfloat16 and "bfloat16" in native
            numerics = numerics.computing_in("bfloat16" if both else "float32")
        settings = settings.model_copy(update={"numerics": numerics})
        if FLOAT_DTYPES[numerics.computes_in] == backbone.dtype:
            return settings, self
        return settings, LoadedModel.open(backbone.reader.model_dir, settings)

    def remembering(self, other: "LoadedModel | None" = None) -> "LoadedModel":
        """The same with an encoder that encodes no text twice; it begins with what `other` has encoded."""
        return replace(self, encoder=self.encoder.remembering(other.encoder if other else None))
