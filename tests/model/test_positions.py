"""How long a text can be: what transformers' own forward takes, and not one token more."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel

from schemas.errors import BadInput
from stages.model.skeleton import build_skeleton
from stages.streaming.check import VOCABULARY, tiny_config
from tests import fleet

POSITIONS = 64
# (configuration, what lies before the first position)
WITH_TABLES = {
    "Bert": 0,
    "Roberta": 1,  # behind the padding index 0
    "MPNet": 2,
    "Longformer": 1,
    "DistilBert": 0,
    "Electra": 0,
    "GPT2": 0,
    "GPTBigCode": 0,
    "OPT": 0,  # two more rows than positions
    "BioGpt": 0,
    "GPTJ": 0,  # rotary angles that are stored
    "RoFormer": 0,  # sinusoids that are stored
}
WITHOUT = ("Llama", "Qwen2", "Gemma3Text", "ModernBert", "Mamba", "Bloom", "Falcon", "GPTNeoX", "XGLM", "NomicBert")


def tiny(family: str) -> Any:
    return tiny_config(getattr(transformers, f"{family}Config")())


def limit_of(config: Any) -> int | None:
    return build_skeleton(config, "mean", dtype=torch.float32).position_limit


def takes(config: Any, tokens: int) -> bool:
    ids = torch.randint(3, VOCABULARY, (1, tokens))
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", WITH_TABLES)
def test_a_table_limits_texts_to_what_transformers_takes(family: str) -> None:
    limit = limit_of(tiny(family))
    assert limit == POSITIONS - WITH_TABLES[family]
    assert takes(tiny(family), limit)
    assert not takes(tiny(family), limit + 1)


@pytest.mark.parametrize("family", WITHOUT)
def test_nothing_limits_positions_that_are_computed(family: str) -> None:
    assert limit_of(tiny(family)) is None
    assert takes(tiny(family), 3 * POSITIONS)


def test_finding_the_limit_changes_no_model(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "roberta")
    backbone = fleet.open_backbone(tmp_path)
    before = backbone.embed(fleet.batch())
    assert backbone.position_limit == POSITIONS - 1
    assert backbone.skeleton.config.max_position_embeddings == POSITIONS
    assert torch.equal(backbone.embed(fleet.batch()), before)


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("opt", 64)])
def test_a_model_is_not_opened_for_longer_texts_than_it_takes(tmp_path: Path, family: str, limit: int) -> None:
    fleet.save_model(tmp_path, family)
    with pytest.raises(BadInput, match="positions") as caught:
        fleet.open_backbone(tmp_path, fleet.settings(encoding={"max_length": limit + 1}))
    assert caught.value.values == {"encoding.max_length": limit + 1, f"limit of this {family}": limit}
    for way_out in (limit, "auto"):  # what the hint says
        assert str(way_out) in caught.value.hint
        fleet.open_backbone(tmp_path, fleet.settings(encoding={"max_length": way_out}))


def test_a_model_without_a_table_is_opened_for_any_length(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama")
    fleet.open_backbone(tmp_path, fleet.settings(encoding={"max_length": 1000}))
