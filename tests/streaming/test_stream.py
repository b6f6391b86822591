"""Streamed, prefetched, cached, micro-batched: every way gives the bytes of every other."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from schemas.errors import NotTrusted
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.model.backbone import Backbone
from stages.store.artifact import Artifact
from stages.store.cache_directory import CacheDirectory
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import PLACEMENTS, SMALLEST
from stages.streaming.prefix_cache import PrefixCache, prefix_cache
from stages.streaming.stream import load_layers, run_prefix, stream_layers
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED, BottleneckTuning, Tuning
from tests import fleet
from tests.fleet.device import OneDevice, same

DEPTH = fleet.DEPTH


@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "mamba"])
@pytest.mark.parametrize(("window_size", "start"), [(1, 1), (2, 0), (2, 1), (3, 0)])
def test_every_placement_trains_the_same_bytes(family: str, window_size: int, start: int, tmp_path: Path) -> None:
    """Two epochs of two steps, micro-batches of three of a batch of five: bit for bit, optimiser included."""
    world = OneDevice(tmp_path, family, window_size=window_size)
    expected, *others = (world.train(placement, start=start) for placement in PLACEMENTS)
    assert any(np.abs(value).max() > 0 for name, value in expected.items() if "up.weight" in name)
    for other in others:
        assert same(expected, other)


def test_a_cached_prefix_trains_the_same_bytes_and_runs_no_layer_twice(tmp_path: Path) -> None:
    world = OneDevice(tmp_path, "bert", window_size=1)
    cache = CacheDirectory(tmp_path / "cache")
    ran: list[int] = []
    for index, layer in enumerate(world.model.backbone.skeleton.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    plain = [world.train(PLACEMENTS[0], start=start) for start in range(DEPTH)]
    ran.clear()
    cached = [world.train(PLACEMENTS[1], start=start, cache=cache) for start in range(DEPTH)]
    assert all(same(left, right) for left, right in zip(plain, cached, strict=True))
    chunks, steps = len(world.texts.chunks()), 2 * 2 * 2
    assert ran.count(0) == chunks + steps  # once as the prefix of window 1, then no more; and its own window
    assert ran.count(1) == chunks + steps
    ran.clear()
    again = world.train(SMALLEST, start=2, cache=cache)
    assert same(plain[2], again)
    assert set(ran) == {2}


def cache_of(directory: CacheDirectory, plan: PlanManifest, tuning: Tuning, texts: EncodedTexts) -> PrefixCache:
    cache = prefix_cache(directory, plan, tuning, texts)
    assert cache is not None
    return cache


def test_the_cache_knows_every_thing_that_decides_its_bytes(tmp_path: Path) -> None:
    world = OneDevice(tmp_path, "bert")
    manifest = world.plan.manifest
    tuning = BottleneckTuning.of(manifest, _tensors(world.state), torch.float32)
    adapters = tuning.adapters
    directory = CacheDirectory(tmp_path / "cache")
    base = cache_of(directory, manifest, tuning, world.texts)
    names = {base._path(2)}
    numerics = manifest.settings.numerics
    for change in ({"micro_batch": 7}, {"threads": 5}, {"compute": "bfloat16"}):
        settings = manifest.settings.model_copy(update={"numerics": numerics.model_copy(update=change)})
        plan = manifest.model_copy(update={"settings": settings})
        names.add(cache_of(directory, plan, tuning, world.texts)._path(2))
    for part in ("config", "embeddings", "rest"):
        model = manifest.model.model_copy(update={part: "sha256:" + "1" * 64})
        names.add(cache_of(directory, manifest.model_copy(update={"model": model}), tuning, world.texts)._path(2))
    layers = (manifest.model.layers[0], "sha256:" + "2" * 64, *manifest.model.layers[2:])
    changed = manifest.model_copy(update={"model": manifest.model.model_copy(update={"layers": layers})})
    names.add(cache_of(directory, changed, tuning, world.texts)._path(2))
    rows = (world.texts.rows[0][:-1], *world.texts.rows[1:])
    names.add(
        cache_of(directory, manifest, tuning, EncodedTexts(rows, 0, "right", 3))._path(2),
    )
    names.add(base._path(1))
    adapters[1].up_DR[0, 0] += 1  # below depth 2
    names.add(cache_of(directory, manifest, tuning, world.texts)._path(2))
    assert len(names) == 11
    before = cache_of(directory, manifest, tuning, world.texts)._path(2)
    adapters[2].up_DR[0, 0] += 1  # not below
    assert cache_of(directory, manifest, tuning, world.texts)._path(2) == before


def test_a_damaged_entry_is_thrown_away_and_made_again(tmp_path: Path) -> None:
    world = OneDevice(tmp_path, "bert", window_size=1)
    cache = CacheDirectory(tmp_path / "cache")
    expected = world.train(PLACEMENTS[0], start=2, cache=cache)
    kept = {path.name: path.read_bytes() for path, _ in cache.entries()}
    assert len(kept) == 2  # what leaves the start layer, untuned, and what enters the window
    for damage in ("flip", "short", "empty"):
        for path, _ in cache.entries():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes({"flip": bytes(data), "short": bytes(data[:-5]), "empty": b""}[damage])
        assert same(expected, world.train(PLACEMENTS[0], start=2, cache=cache))
        assert {path.name: path.read_bytes() for path, _ in cache.entries()} == kept


@fast(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), limit=st.integers(1, 80))
def test_the_cache_never_outgrows_its_limit_and_keeps_the_newest(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = CacheDirectory(tmp_path_factory.mktemp("cache"), limit)
    for index, size in enumerate(sizes):
        path = cache.prefixes / f"{index:04d}.hidden"
        with cache.writing(path, size) as file:
            assert (file is None) == (size > limit)
            if file is not None:
                file.write(bytes(size))
        if path.exists():
            os.utime(path, ns=(index, index))  # an order that no clock decides
        assert sum(stat.st_size for _, stat in cache.entries()) <= limit
        assert path.exists() == (size <= limit)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path)
    (tmp_path / "prefixes").mkdir()
    left = tmp_path / "prefixes" / ".abc.1234.partial"
    left.write_bytes(b"half")
    with cache.writing(cache.prefixes / "new.hidden", 3) as file:
        assert file is not None
        file.write(b"abc")
    assert not left.exists()
    assert (cache.prefixes / "new.hidden").read_bytes() == b"abc"


def test_a_full_disk_costs_the_entry_and_not_the_work(tmp_path: Path) -> None:
    cache = CacheDirectory(tmp_path)
    with cache.writing(cache.prefixes / "new.hidden", 3):
        raise OSError(28, "No space left on device")
    assert cache.entries() == []
    assert list((tmp_path / "prefixes").glob(".*.partial")) == []


def test_many_processes_share_a_cache(tmp_path: Path) -> None:
    """Four writers of the same 30 entries under a limit of ten: all end well, within the limit, entries whole."""
    context = multiprocessing.get_context("fork")  # nothing to import, and none of them computes
    workers = [context.Process(target=hammer, args=(tmp_path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    entries = CacheDirectory(tmp_path, 1000).entries()
    assert 0 < sum(stat.st_size for _, stat in entries) <= 1000 + 3 * 100  # each writer makes room before it writes
    assert {stat.st_size for _, stat in entries} == {100}


def hammer(path: Path, worker: int) -> None:
    cache = CacheDirectory(path, 1000)
    for index in range(30):
        with cache.writing(cache.prefixes / f"{(index * 7 + worker) % 30:04d}.hidden", 100) as file:
            assert file is not None
            file.write(bytes(100))


@pytest.mark.parametrize("prefetch", [True, False])
def test_layers_that_have_passed_are_gone(prefetch: bool, tmp_path: Path) -> None:
    """Resident size while 40 layers of 8 MiB pass: two of them at most, and none afterwards."""
    from stages.process.measure import resident_bytes

    backbone = many_layers(tmp_path, layers=40, width=512)
    size = backbone.reader.layer_bytes(0)
    before, most = resident_bytes() or 0, 0
    for _, weights in stream_layers(backbone, range(40), prefetch=prefetch):
        assert weights
        most = max(most, (resident_bytes() or 0) - before)
        del weights
    assert most <= (2 if prefetch else 1) * size + 8 * 2**20
    assert (resident_bytes() or 0) - before <= 8 * 2**20


def many_layers(folder: Path, *, layers: int, width: int) -> Backbone:
    from transformers import BertConfig

    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        intermediate_size=2 * width,
        vocab_size=96,
        max_position_embeddings=64,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    fleet.save_tokenizer(folder)
    return fleet.open_backbone(folder)


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_changed_weight_stops_the_stream_whatever_the_order(prefetch: bool, tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "bert")
    fingerprint = fleet.open_backbone(tmp_path).reader.fingerprint()
    fleet.flip_weight(tmp_path, "encoder.layer.1.output.dense.weight")
    backbone = fleet.open_backbone(tmp_path, expected=fingerprint)
    passed = []
    with pytest.raises(NotTrusted, match="layer 1"):
        passed += [layer for layer, _ in stream_layers(backbone, range(DEPTH), prefetch=prefetch)]
    assert passed == []


def test_a_file_that_becomes_short_while_it_is_read_is_named_with_its_layer(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "bert")
    backbone = fleet.open_backbone(tmp_path)
    weights = tmp_path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(NotTrusted, match=r"model\.safetensors") as caught:
        list(stream_layers(backbone, range(DEPTH)))
    assert "layer" in str(caught.value)


@pytest.mark.parametrize("with_cache", [True, False])
def test_once_checks_a_file_again_only_when_it_has_changed(with_cache: bool, tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "bert")
    fingerprint = fleet.open_backbone(tmp_path / "model").reader.fingerprint()
    cache = CacheDirectory(tmp_path / "cache") if with_cache else None

    def read_all(backbone: Backbone) -> None:
        list(stream_layers(backbone, range(DEPTH)))

    def opened(verify: Any = "once") -> Backbone:
        return fleet.open_backbone(tmp_path / "model", expected=fingerprint, verify=verify, cache=cache)

    backbone = opened()
    read_all(backbone)
    checked = _count_checks(backbone)
    read_all(backbone)
    assert checked == []
    later = opened()
    checked = _count_checks(later)
    read_all(later)
    assert checked == ([] if with_cache else ["layer 0", "layer 1", "layer 2"])
    fleet.flip_weight(tmp_path / "model", "encoder.layer.1.output.dense.weight")
    for one in (backbone, opened()):
        with pytest.raises(NotTrusted, match="layer 1"):
            read_all(one)
    read_all(opened("never"))
    with pytest.raises(NotTrusted, match="layer 1"):
        read_all(opened("always"))


def _count_checks(backbone: Backbone) -> list[str]:
    checked: list[str] = []
    inner = backbone.reader._check

    def count(part: str, expected: str, found: str) -> None:
        checked.append(part)
        inner(part, expected, found)

    object.__setattr__(backbone.reader, "_check", count)
    return checked


def test_prefetch_and_disk_give_the_same_hidden_states(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama")
    loaded = fleet.open_model(tmp_path)
    texts = EncodedTexts.encode(fleet.examples(fleet.texts(7)), loaded.encoder, 3)
    results = []
    for prefetch in (True, False):
        for limit in (2**30, 0):
            backbone = loaded.backbone
            with HiddenStates(
                texts.lengths, 64, torch.float32, scratch=tmp_path, in_memory_limit_bytes=limit
            ) as hidden:
                run_prefix(backbone, texts, hidden, UNTUNED, stop=DEPTH, prefetch=prefetch)
                results.append(b"".join(bytes(chunk) for chunk in hidden.chunks()))
    assert len(set(results)) == 1


def _tensors(state: Artifact[StateManifest]) -> dict[str, np.ndarray]:
    from stages.store.artifact import read_tensors

    return {name: np.array(value) for name, value in read_tensors(state).items()}


@pytest.mark.parametrize("family", ["bert", "llama", "mamba"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 4e-3), ("float16", 4e-4)])
def test_half_precision_trains_near_single_precision(family: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    """What comes out of every product with a layer's weight has the dtype; placements agree bit for bit.

    The first loss, over all texts, is near that of single precision.  Whether it differs at all is for the kernels to
    say: a mean can round to the same number.
    """
    losses = {}
    for name in ("float32", dtype):
        world = OneDevice(tmp_path / name, family, compute=name, batch_size=10)
        seen = dtypes_seen(world.model.backbone)
        assert same(world.train(PLACEMENTS[0]), world.train(SMALLEST))
        assert seen == {getattr(torch, name)}
        losses[name] = world.first_loss
    assert losses[dtype] == pytest.approx(losses["float32"], rel=tolerance)


def dtypes_seen(backbone: Backbone) -> set[torch.dtype]:
    """Dtypes of the layers' weights but matrices; from here on also of whatever a linear module of theirs gives."""
    stay = backbone.skeleton.stay_stored(0)
    layers = load_layers(backbone, range(DEPTH)).values()
    seen = {value.dtype for layer in layers for name, value in layer.items() if name not in stay}
    for module in (module for layer in backbone.skeleton.layers for module in layer.modules()):
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _arguments, output: seen.add(output.dtype))
    return seen
