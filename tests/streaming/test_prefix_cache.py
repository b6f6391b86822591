"""What a pass finds in the cache and what it leaves there: the same bytes, and as few layers as can be."""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.base import canonical_json
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from stages.model.backbone import Backbone
from stages.store.artifact import read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.stream import run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.state_adapters import StateAdapters
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import UNTUNED, BottleneckTuning, Tuning
from tests import fleet
from tests.fleet.device import OneDevice

DEPTH = 4


class Passes:
    """One model and some texts, passed with one tuning after the other over one cache."""

    def __init__(self, folder: Path, family: str, *, in_memory: bool = True) -> None:
        fleet.save_model(folder / "model", family, num_hidden_layers=DEPTH)
        self.settings: Settings = fleet.settings(numerics={"threads": 1, "micro_batch": 3})
        self.backbone = Backbone.open(folder / "model", self.settings, pad_id=0)
        self.fingerprint: ModelFingerprint = self.backbone.reader.fingerprint()
        draw = np.random.default_rng(1)
        self.texts = EncodedTexts(tuple(draw.integers(3, 20, size) for size in (4, 7, 2, 9, 5)), 0, "right", 3)
        self.directory = CacheDirectory(folder / "cache")
        self.folder = folder
        self.limit = 2**30 if in_memory else 0
        self.ran: list[int] = []
        for index, layer in enumerate(self.backbone.skeleton.layers):
            layer.register_forward_hook(lambda *_, index=index: self.ran.append(index))

    def cache(self, tuning: Tuning) -> PrefixCache:
        return PrefixCache(self.directory, self.fingerprint, self.settings, tuning, self.texts)

    def run(self, tuning: Tuning, *, stop: int = DEPTH, keep: tuple[int, ...] = (), cached: bool = True) -> Any:
        """The bytes of h_stop, and which layers were run."""
        self.ran.clear()
        cache = self.cache(tuning) if cached else None
        width, dtype = self.backbone.hidden_size, self.backbone.dtype
        with HiddenStates(
            self.texts.lengths, width, dtype, scratch=self.folder, in_memory_limit_bytes=self.limit
        ) as hidden:
            run_prefix(self.backbone, self.texts, hidden, tuning, stop=stop, cache=cache, keep=keep)
            return b"".join(bytes(chunk) for chunk in hidden.chunks()), sorted(set(self.ran))


def tuned(first: int, *, seed: int) -> BottleneckTuning:
    """Adapters that do something, from layer `first` on."""
    draw = np.random.default_rng(seed)
    tensors = fresh_adapters(range(first, DEPTH), hidden_size=64, bottleneck=8, seed=1)
    noisy = {name: (value + 0.2 * draw.standard_normal(value.shape)).astype("f4") for name, value in tensors.items()}
    return BottleneckTuning(adapters_from_tensors(noisy, "relu"), {})


def retrained(tuning: BottleneckTuning, *layers: int) -> BottleneckTuning:
    """With other adapters after some layers."""
    other = tuned(0, seed=99).adapters
    return BottleneckTuning({**tuning.adapters, **{layer: other[layer] for layer in layers}}, {})


@pytest.fixture(params=["memory", "file"])
def passes(request: pytest.FixtureRequest, tmp_path: Path) -> Passes:
    return Passes(tmp_path, "bert", in_memory=request.param == "memory")


def test_what_the_first_tuned_layer_computes_is_kept_before_its_adapter_changes_it(passes: Passes) -> None:
    before, after = tuned(1, seed=1), retrained(tuned(1, seed=1), 1, 2)
    assert passes.run(before, keep=(1,)) == passes.run(before, cached=False)
    expected = passes.run(after, cached=False)[0]
    assert passes.run(after) == (expected, [2, 3])
    assert passes.run(tuned(1, seed=5), stop=2)[1] == []


def test_a_window_that_moves_costs_an_evaluation_only_the_layers_behind_what_changed(passes: Passes) -> None:
    """Eval after each round of a chain of two-layer windows from layer 1: the window that trains next is kept."""
    tuning = tuned(1, seed=1)
    for start, runs in ((1, [0, 1, 2, 3]), (2, [2, 3]), (1, [3]), (2, [2, 3])):
        expected = passes.run(tuning, cached=False)[0]
        assert passes.run(tuning, keep=(1, start)) == (expected, runs)
        tuning = retrained(tuning, start, start + 1) if runs != [3] else tuned(1, seed=7)


def test_a_pass_that_ends_at_what_it_keeps_keeps_just_that(passes: Passes) -> None:
    tuning = tuned(1, seed=1)
    expected = passes.run(tuning, stop=2, cached=False)[0]
    assert passes.run(tuning, stop=2, keep=(1, 2)) == (expected, [0, 1])
    assert passes.run(tuning, stop=2, keep=(1, 2)) == (expected, [])
    assert passes.run(tuning, stop=3) == (passes.run(tuning, stop=3, cached=False)[0], [2])
    assert len(passes.directory.entries()) == 2  # layer 1 before its adapter, and h_2


def test_without_adapters_one_entry_serves_both_names(passes: Passes) -> None:
    expected = passes.run(UNTUNED, keep=(2, DEPTH))[0]
    assert len(passes.directory.entries()) == 2
    assert passes.run(UNTUNED) == (expected, [])
    # What a profile leaves is what a chain that starts behind it begins with.
    assert passes.run(tuned(1, seed=1), stop=3)[1] == [2]


def test_an_untuned_pass_is_where_a_chain_begins(passes: Passes) -> None:
    passes.run(UNTUNED, keep=(2,))
    for first, runs in ((2, [2, 3]), (1, [2, 3]), (0, [0, 1, 2, 3])):
        tuning = tuned(first, seed=3)
        assert passes.run(tuning) == (passes.run(tuning, cached=False)[0], runs)


def test_a_tuning_inside_layers_is_asked_for_h_alone(passes: Passes) -> None:
    """Where weights change, a layer's output before `after` has changed too."""

    class Inside(BottleneckTuning):
        changes_layers = True

    before = Inside(tuned(1, seed=1).adapters, {})
    after = Inside(retrained(tuned(1, seed=1), 1).adapters, {})
    passes.run(before, keep=(1,))
    assert passes.run(after)[1] == [1, 2, 3]


def test_what_is_forgotten_is_gone_and_nothing_else(passes: Passes) -> None:
    passes.run(UNTUNED, keep=(1, 2, 3))
    passes.cache(UNTUNED).forget(3)
    passes.cache(UNTUNED).forget(3)
    assert passes.run(UNTUNED)[1] == [2, 3]


@pytest.mark.parametrize("attack", ["other states", "another's secret", "another entry", "pipe", "folder", "link"])
def test_what_somebody_else_puts_there_is_no_entry(attack: str, passes: Passes, tmp_path: Path) -> None:
    """Whoever can write to the directory steers nothing that is trained and then signed, and stops nothing."""
    expected = passes.run(UNTUNED, keep=(1, 2, DEPTH))[0]
    entries = [path for path, _ in passes.directory.entries()]
    kept = {path: path.read_bytes() for path in entries}
    for path, data in kept.items():
        states = bytes(len(data) - 32)
        path.unlink()
        if attack == "other states":
            path.write_bytes(hashlib.sha256(states).digest() + states)
        elif attack == "another's secret":
            path.write_bytes(hmac.digest(bytes(32), canonical_json(path.name) + states, "sha256") + states)
        elif attack == "another entry":
            path.write_bytes(kept[entries[entries.index(path) - 1]])
        elif attack == "pipe":
            os.mkfifo(path)
        elif attack == "folder":
            path.mkdir()
        else:
            (tmp_path / path.name).write_bytes(data)
            path.symlink_to(tmp_path / path.name)
    assert passes.run(UNTUNED, keep=(1, 2, DEPTH)) == (expected, [0, 1, 2, 3])
    if attack != "folder":
        assert {path: path.read_bytes() for path in entries} == kept
    if attack == "link":
        assert all((tmp_path / path.name).read_bytes() == data for path, data in kept.items())


def test_two_homes_share_a_directory_and_no_entry(tmp_path: Path) -> None:
    mine, theirs, again = (CacheDirectory(tmp_path / "cache", home=tmp_path / name) for name in ("a", "b", "a"))
    for one in (mine, theirs):
        assert not one.knows("fact")
        one.note("fact")
    assert mine.prefix("facts") == again.prefix("facts") != theirs.prefix("facts")
    assert again.knows("fact")
    assert not again.knows("another")
    secret = tmp_path / "a" / "cache.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    for note in (tmp_path / "cache" / "verified").iterdir():
        note.write_bytes(b"")
    assert not again.knows("fact")
    secret.chmod(0o644)  # others may have read it
    assert CacheDirectory(tmp_path / "cache", home=tmp_path / "a").secret != mine.secret


def test_without_a_home_nothing_is_kept_and_all_is_computed(passes: Passes, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    passes.directory = CacheDirectory(tmp_path / "cache", home=tmp_path / "file" / "home")
    expected = passes.run(UNTUNED, keep=(1, 2))
    assert passes.run(UNTUNED, keep=(1, 2)) == expected == (expected[0], [0, 1, 2, 3])
    passes.directory.note("fact")
    assert not passes.directory.knows("fact")
    assert not (tmp_path / "cache").exists() or not passes.directory.entries()


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_what_lies_where_the_lock_and_what_was_left_are_is_left_alone(planted: str, tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path / "cache", home=tmp_path / "home")
    cache.prefixes.mkdir(parents=True)
    (tmp_path / "diary").write_text("mine")
    for name in (".lock", ".a.partial"):
        place = cache.prefixes / name
        place.symlink_to(tmp_path / "diary") if planted == "link" else os.mkfifo(place)
    with cache.writing(cache.prefix("facts"), 3) as file:
        if file is not None:
            file.write(b"abc")
    assert (tmp_path / "diary").read_text() == "mine"


@pytest.mark.parametrize("family", ["llama", "mixtral", "mamba"])
@torch.no_grad()
def test_other_families_begin_at_an_untuned_output_with_the_same_bytes(family: str, tmp_path: Path) -> None:
    passes = Passes(tmp_path, family)
    before, after = tuned(1, seed=1), retrained(tuned(1, seed=1), 1, 2)
    passes.run(before, keep=(1,))
    assert passes.run(after) == (passes.run(after, cached=False)[0], [2, 3])


def test_the_keys_of_all_depths_read_each_adapter_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the smallest placement each read is one of a file; the keys are those of adapters in memory."""
    device = OneDevice(tmp_path, "bert")
    plan, state, texts = device.plan.manifest, device.state, device.texts
    directory, read = CacheDirectory(tmp_path / "cache"), list[str]()

    def reading(artifact: Any, prefix: str) -> dict[str, np.ndarray]:
        read.append(prefix)
        return read_tensors(artifact, prefix)

    monkeypatch.setattr("stages.tuning.state_adapters.read_tensors", reading)
    caches = [
        PrefixCache(directory, plan.model, plan.settings, BottleneckTuning(adapters, {}), texts)
        for adapters in (
            StateAdapters(plan, state, torch.float32),
            BottleneckTuning.of(plan, read_tensors(state), torch.float32).adapters,
        )
    ]
    scratch = HiddenStates(texts.lengths, fleet.WIDTH, torch.float32, scratch=tmp_path)
    assert caches[0].deepest(fleet.DEPTH, scratch) == (0, True)
    depths = [(depth, untuned) for depth in range(1, fleet.DEPTH + 1) for untuned in (False, True)]
    keys = [[cache._path(depth, untuned=untuned) for depth, untuned in depths] for cache in caches]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == len(depths)
    assert all(caches[0].changes_after(layer) for layer in range(fleet.DEPTH))
    assert read == [f"adapters.{layer}." for layer in range(fleet.DEPTH)]
