"""A model with its tokenizer, opened once for one stage or, in a simulation, for many."""

from dataclasses import dataclass, replace
from pathlib import Path

from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from stages.data.encode import Encoder
from stages.model.backbone import Backbone
from stages.store.cache_directory import CacheDirectory
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

    def remembering(self, other: "LoadedModel | None" = None) -> "LoadedModel":
        """The same with an encoder that encodes no text twice; it begins with what `other` has encoded."""
        return replace(self, encoder=self.encoder.remembering(other.encoder if other else None))
