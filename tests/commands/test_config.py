"""chainctl config show: what a command would take, and from where."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chainctl.commands.config import FLAGS
from schemas.recipe import setting_paths
from tests import fleet


def shown(*arguments: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(fleet.chainctl("config", "show", *arguments, "--json").stdout)
    return answer


def test_each_setting_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text('seed = 3\n[chain]\nwindow_size = 2\nstart = 1\n[numerics]\ndtype = "float32"\n')
    monkeypatch.setenv("CHAINCTL_CHAIN_WINDOW_SIZE", "3")
    monkeypatch.setenv("CHAINCTL_OPTIMIZER_EPOCHS", "2")
    monkeypatch.setenv("CHAINCTL_KEY", "office")
    found = shown("--recipe", recipe, "--set", "optimizer.epochs=4")
    settings = found["setting"]
    assert settings["seed"] == {"value": 3, "from": str(recipe)}
    assert settings["chain.start"] == {"value": 1, "from": str(recipe)}
    assert settings["numerics.compute"] == {"value": "float32", "from": str(recipe)}  # under its older name
    assert settings["chain.window_size"] == {"value": 3, "from": "CHAINCTL_CHAIN_WINDOW_SIZE"}
    assert settings["optimizer.epochs"] == {"value": 4, "from": "--set"}
    assert settings["optimizer.name"] == {"value": "adamw", "from": "default"}
    assert found["machine"]["--key"] == {"value": "office", "from": "CHAINCTL_KEY"}
    assert found["machine"]["keys and trust"]["from"] == "CHAINCTL_HOME"
    changed = shown("--recipe", recipe, "--changed")["setting"]
    assert changed == {path: row for path, row in settings.items() if row["from"] != "default"} | {
        "optimizer.epochs": {"value": 2, "from": "CHAINCTL_OPTIMIZER_EPOCHS"}
    }


def test_what_it_shows_is_a_recipe_that_gives_the_same() -> None:
    done = fleet.chainctl("config", "show")
    rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    settings = [row for row in rows if row[0] in setting_paths()]
    again = shown(*(part for path, value, _ in settings for part in ("--set", f"{path}={value}")))
    values = {path: row["value"] for path, row in again["setting"].items()}
    assert values == {path: row["value"] for path, row in shown()["setting"].items()}
    assert len(settings) == len(values)


def test_no_recipe_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipe.toml", "chainctl.toml", ".chainctl.toml", "pyproject.toml"):
        (tmp_path / name).write_text("seed = 9\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert {row["from"] for row in shown()["setting"].values()} == {"default"}


def test_a_plan_shows_what_it_has_decided(tmp_path: Path) -> None:
    chosen = fleet.decided(fleet.settings())
    fleet.write_plan(tmp_path / "plan", [fleet.profile_manifest("one", [0.9, 0.7, 0.6, 0.5, 0.4, 0.3])], chosen)
    found = shown("--plan", tmp_path / "plan")["setting"]
    assert {row["from"] for row in found.values()} == {"the plan"}
    assert found["chain.window_size"]["value"] == 2
    assert found["optimizer.learning_rate"]["value"] == chosen.optimizer.learning_rate
    both = fleet.chainctl("config", "show", "--plan", tmp_path / "plan", "--set", "seed=1", check=False)
    assert both.returncode == 2


def test_every_flag_that_the_environment_gives_is_listed() -> None:
    options = (fleet.ROOT / "chainctl" / "options.py").read_text()
    assert sorted(re.findall(r'envvar="(\w+)"', options)) == sorted(FLAGS.values())
