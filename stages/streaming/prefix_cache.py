"""What left a layer, kept for next time: a device that comes again starts where nothing has changed.

Layers below the start layer have no adapters, so what leaves them never changes, and neither does what the start
layer makes of that before its own adapter.  When the window moves from s to s+1, no adapter below s has changed, so
h_{s+1} comes from the kept h_s through one layer.  All are one rule: an entry holds states of some texts, named by a
digest of everything that went into them (the model's parts up to layer d, the tuning below d, token ids and padding,
numerics, versions).  It is h_d, or the output of layer d-1 before the tuning changes it.  Whoever finds it gets the
very bytes that computing again would give; an entry that is damaged, or that was made with another secret than that of
this home (`cache_directory.py`), is thrown away.  An entry is read through one
descriptor, so that eviction cannot cut a reader short.
"""

import hashlib
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import transformers

from schemas.errors import ChainError
from schemas.plan import PlanManifest
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from stages.store.cache_directory import CacheDirectory
from stages.store.regular import open_regular
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning
from stages.weights.files import bytes_of

DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class PrefixCache:
    """Hidden states of `texts` under a model, the numerics of `settings` and a `tuning`.

    An entry is a MAC of its name and the rest, then the states, one text after the other.  The tuning must not change.
    """

    directory: CacheDirectory
    model: ModelFingerprint
    settings: Settings
    tuning: Tuning
    texts: EncodedTexts
    _digests: list[str] = field(default_factory=lambda: [""], init=False, compare=False, repr=False)  # by depth

    def deepest(self, stop: int, hidden: HiddenStates) -> tuple[int, bool]:
        """Fill `hidden` with the deepest entry up to h_stop: its depth d, and whether it is h_d.

        If not, `Tuning.after` of layer d-1 makes h_d of it.  (0, True) where there is nothing.
        """
        for depth in range(stop, 0, -1):
            if self._load(self._path(depth), hidden):
                return depth, True
            if self.changes_after(depth - 1) and self._load(self._path(depth, untuned=True), hidden):
                return depth, False
        return 0, True

    def changes_after(self, layer: int) -> bool:
        """Whether the output of a layer is one thing and what the tuning makes of it another."""
        return self._below(layer + 1) != self._below(layer) and not self.tuning.changes_layers

    def store(self, depth: int, hidden: HiddenStates, *, untuned: bool = False) -> None:
        """Keep h_depth, unless it is larger than the whole cache may be.

        `untuned`: keep the output of layer depth-1 before the tuning changes it.
        """
        path = self._path(depth, untuned=untuned)
        if path.exists():
            return
        with self.directory.writing(path, hidden.total_bytes + DIGEST_BYTES) as file:
            if file is None:
                return
            file.write(bytes(DIGEST_BYTES))
            hasher = self.directory.mac(path.name)
            for chunk in hidden.chunks():
                hasher.update(chunk)
                file.write(chunk)
            file.seek(0)
            file.write(hasher.digest())

    def forget(self, depth: int) -> None:
        """h_depth will not be asked for."""
        _remove(self._path(depth))

    def _load(self, path: Path, hidden: HiddenStates) -> bool:
        if not os.path.lexists(path):
            return False
        with suppress(ChainError), os.fdopen(open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size == hidden.total_bytes + DIGEST_BYTES:
                expected = file.read(DIGEST_BYTES)
                hasher = self.directory.mac(path.name)
                for buffer in hidden.buffers():
                    file.readinto(buffer)
                    hasher.update(buffer)
                if hmac.compare_digest(hasher.digest(), expected):
                    with suppress(OSError):  # a cache that somebody else owns
                        os.utime(file.fileno())  # used just now
                    return True
        _remove(path)  # damaged
        return False

    def _path(self, depth: int, *, untuned: bool = False) -> Path:
        model, settings, texts = self.model, self.settings, self.texts
        below = self._below(depth - 1 if untuned else depth)
        facts = [
            depth,
            (model.config, model.embeddings, model.rest, *model.layers[:depth]),
            settings.numerics.model_dump(mode="json"),
            settings.adapter.activation if below else None,  # a profile comes before it is decided
            below,
            texts.side,
            texts.row_length,
            texts.pad_id,
            self._rows,
            (torch.__version__, transformers.__version__),
        ]
        return self.directory.prefix(facts)

    def _below(self, depth: int) -> str:
        """A digest of the tuning below a depth; empty where there is none.

        That of a depth goes on from that of the depth before: each layer's tensors, which may be on disk, are read
        once.
        """
        while len(self._digests) <= depth:
            before, digest = self._digests[-1], None
            for name, parameter in self.tuning.of_layer(len(self._digests) - 1):
                digest = digest or hashlib.sha256(before.encode())
                digest.update(f"{name} {list(parameter.shape)}".encode())
                digest.update(bytes_of(parameter.contiguous()))
            self._digests.append(digest.hexdigest() if digest else before)
        return self._digests[depth]

    @cached_property
    def _rows(self) -> str:
        """A digest of the texts' token ids."""
        digest = hashlib.sha256()
        for row in self.texts.rows:
            digest.update(len(row).to_bytes(8, "little") + row.tobytes())
        return digest.hexdigest()


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, or of somebody else: then the work is done again each time
        path.unlink()


def prefix_cache(
    directory: CacheDirectory | None, plan: PlanManifest, tuning: Tuning, texts: EncodedTexts
) -> PrefixCache | None:
    """The cache of some texts, where there is a directory for it."""
    return PrefixCache(directory, plan.model, plan.settings, tuning, texts) if directory is not None else None
