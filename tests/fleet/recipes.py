"""Settings for the tiny models, and recipes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.settings import Settings
from tests.fleet.labelled_texts import LABELS

LANGUAGE: dict[str, dict[str, Any]] = {"task": {"kind": "causal-lm", "labels": ()}}


def settings(**sections: dict[str, Any]) -> Settings:
    """Settings for the tiny models, with sections changed key by key."""
    base: dict[str, dict[str, Any]] = {
        "task": {"labels": LABELS},
        "encoding": {"max_length": 16},
        "head": {"form": "mean"},
        "similarity": {"min_examples": 5, "max_examples": 16},
        "chain": {"foresight": "adapters", "start": 0, "window_size": 2},
        "adapter": {"reduction_factor": 8},
        "optimizer": {"learning_rate": 1e-2},
        "numerics": {"threads": 1, "micro_batch": 4},
    }
    for name, section in sections.items():
        base.setdefault(name, {}).update(section)
    return Settings.model_validate(base)


def write_recipe(path: Path, chosen: Settings) -> Path:
    """The settings as a recipe file."""
    from stages.report.recipe import write_recipe as render

    path.write_text(render(chosen))
    return path
