"""The never-tuned prefix, kept: layers below the start layer have no adapters, so what leaves them never changes.

An entry is the hidden states of some texts after those layers, named by a digest of everything that went into them:
the model's parts, the token ids, the numerics.  Whoever finds it gets the very bytes that computing again would give.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from schemas.base import canonical_json
from schemas.plan import PlanManifest
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from stages.model.hidden import HiddenStates
from stages.model.texts import EncodedTexts


@dataclass(frozen=True)
class PrefixCache:
    """Hidden states after the first `depth` layers, in `directory`."""

    directory: Path
    depth: int
    model: ModelFingerprint
    settings: Settings

    def load(self, texts: EncodedTexts, hidden: HiddenStates) -> bool:
        """Fill `hidden` from the cache; whether it was there."""
        path = self._path(texts)
        if not path.is_file() or path.stat().st_size != hidden.total_bytes:
            return False
        hidden.copy_from(path)
        return True

    def store(self, texts: EncodedTexts, hidden: HiddenStates) -> None:
        """Keep `hidden` for next time."""
        hidden.copy_to(self._path(texts))

    def _path(self, texts: EncodedTexts) -> Path:
        digest = hashlib.sha256()
        parts = (self.model.config, self.model.embeddings, self.model.rest, *self.model.layers[: self.depth])
        numerics = self.settings.numerics.model_dump(mode="json")
        versions = (torch.__version__, transformers.__version__)
        digest.update(canonical_json([self.depth, parts, numerics, texts.side, texts.pad_id, versions]))
        for row in texts.rows:
            digest.update(len(row).to_bytes(8, "little") + row.tobytes())
        return self.directory / f"prefix-{self.depth}-{digest.hexdigest()[:40]}.bin"


def prefix_cache(plan: PlanManifest, directory: Path | None) -> PrefixCache | None:
    """The cache of a plan's never-tuned layers, where there is a directory for it and at least one such layer."""
    if directory is None or plan.start_layer == 0:
        return None
    return PrefixCache(directory, plan.start_layer, plan.model, plan.settings)
