"""The page about FOAT on decoders: all settings in one pass are each setting alone, and the page is its results."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import foat, foat_page
from benchmarks.harness import RESULTS
from stages.model.loading import LoadedModel
from stages.profile import measure_similarity
from stages.streaming.placement import FASTEST
from stages.streaming.texts import EncodedTexts
from tests import fleet


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    fleet.save_model(tmp_path, "llama")
    return fleet.open_model(tmp_path)


def test_all_settings_at_once_are_each_setting_alone(model: LoadedModel, tmp_path: Path) -> None:
    texts = EncodedTexts.encode(fleet.examples(fleet.texts(12)), model.encoder, 4)
    settings = foat.every_setting(max_examples=12, min_examples=5)
    curves, sinks = foat.measure(model.backbone, texts, settings, scratch=tmp_path, precise=settings)
    assert len(curves) == len(settings) == 48
    for setting in settings[::5]:
        alone, _ = measure_similarity(
            model.backbone,
            texts,
            fleet.settings(),
            setting,
            placement=FASTEST,
            scratch=tmp_path,
            progress=lambda *_: None,
        )
        assert tuple(curves[setting]) == alone
    assert [row.layer for row in sinks.rows] == [-1, *range(model.backbone.num_layers)]


def test_without_sinks_nothing_is_left_out(model: LoadedModel, tmp_path: Path) -> None:
    texts = EncodedTexts.encode(fleet.examples(fleet.texts(12)), model.encoder, 4)
    plain = next(setting for setting in foat.every_setting() if setting.scale == "none" and setting.pooling == "mean")
    curves, sinks = foat.measure(model.backbone, texts, [plain], scratch=tmp_path)
    for row, point in zip(sinks.rows[1:], curves[plain], strict=True):
        assert row.texts_with_another == 0
        assert row.cka_without == pytest.approx(point.cka)


def test_the_page_says_what_the_results_say() -> None:
    results = json.loads((RESULTS / "foat.json").read_text())
    page = foat_page.render(results)
    assert foat_page.PAGE.read_text() == page
    assert not re.search(r"\$\w", page)
    words = "".join(ElementTree.fromstring(foat_page.draw(results)).itertext())
    assert "first token left out" in words
