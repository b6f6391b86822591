"""Recipes: overrides over environment over file over defaults, clear refusals, every setting explained."""

import itertools
import tomllib
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from chainctl.presets import PRESETS
from schemas.errors import BadInput, UsageProblem
from schemas.methods import ChainSettings, default_settings
from schemas.recipe import parse_recipe, setting_paths
from schemas.refs import Dtype
from schemas.settings import Compute, OptimizerSettings, Settings, TaskSettings
from stages.report.recipe import EXPLAINED, write_recipe


def parse(text: str = "", environment: dict[str, str] | None = None, overrides: list[str] | None = None) -> Settings:
    return parse_recipe(text, source="recipe.toml", environment=environment or {}, overrides=overrides or [])


def value_at(value: BaseModel, path: str) -> Any:
    for key in path.split("."):
        value = getattr(value, key)
    return value


def test_an_empty_recipe_is_the_defaults() -> None:
    assert parse() == Settings()


def test_overrides_win_over_the_environment_over_the_file_over_defaults() -> None:
    path, text = "optimizer.epochs", "[optimizer]\nepochs = 2\n"
    environment, overrides = {"CHAINCTL_OPTIMIZER_EPOCHS": "3"}, [f"{path}=4"]
    assert value_at(parse(), path) == 1
    assert value_at(parse(text), path) == 2
    assert value_at(parse("", environment), path) == 3
    assert value_at(parse(text, environment), path) == 3
    assert value_at(parse("", {}, overrides), path) == 4
    assert value_at(parse(text, {}, overrides), path) == 4
    assert value_at(parse(text, environment, overrides), path) == 4


def test_the_last_of_two_overrides_wins() -> None:
    assert parse(overrides=["seed=1", "seed=2"]).seed == 2


def test_an_override_leaves_the_rest_of_its_section_alone() -> None:
    chosen = parse("[optimizer]\nepochs = 2\nbatch_size = 4\n", overrides=["optimizer.epochs=5"]).optimizer
    assert (chosen.epochs, chosen.batch_size) == (5, 4)


@pytest.mark.parametrize("path", sorted(setting_paths()))
def test_every_setting_can_come_from_each_source(path: str) -> None:
    other = {
        "similarity.min_examples": "40",
        "similarity.max_examples": "300",
        "optimizer.momentum": "0.5",
        "optimizer.round_decay": "0.5",
        "chain.cka_threshold": "0.5",
        "federation.trim_fraction": "0.25",
        "federation.server_momentum": "0.5",
        "federation.server_beta2": "0.5",
        "federation.server_optimizer": "fedadam",
        "task.labels": '["a", "b"]',
        "task.kind": "text-classification",
        "encoding.packing": "false",
        "optimizer.final_learning_rate": "0.001",
        "federation.strategy": "weighted-mean",
    }
    words = {
        "task.text_column": "body",
        "task.label_column": "class",
        "encoding.padding_side": "left",
        "prompt.format": "plain",
        "prompt.template": "alpaca",
        "prompt.learn": "all",
        "prompt.date": '"2025-01-02"',
        "optimizer.schedule": "cosine",
        "head.form": "mean",
        "similarity.estimator": "biased",
        "similarity.kernel": "rbf",
        "similarity.pooling": "tokens",
        "similarity.tokens": "skip-first",
        "similarity.scale": "unit",
        "similarity.reference": "first-layer",
        "chain.method": "no-ft",
        "chain.advance": "on-convergence",
        "chain.foresight": "layers",
        "chain.order": "downwards",
        "adapter.activation": "gelu",
        "optimizer.name": "sgd",
        "numerics.compute": "bfloat16",
    }
    text = {**other, **words}.get(path, "3")
    try:
        expected: Any = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        expected = text
    expected = tuple(expected) if isinstance(expected, list) else expected
    by_override = parse(overrides=[f"{path}={text}"])
    by_environment = parse(environment={"CHAINCTL_" + path.replace(".", "_").upper(): text})
    assert value_at(by_override, path) == expected
    assert by_environment == by_override


def test_other_variables_of_the_environment_are_left_alone() -> None:
    assert parse(environment={"CHAINCTL_MODEL": "dir", "CHAINCTL_MEMORY_BUDGET": "1GiB", "SEED": "3"}) == Settings()


def test_a_word_needs_no_quotes_and_a_quoted_one_is_the_same() -> None:
    assert parse(overrides=["optimizer.name=sgd"]) == parse(overrides=['optimizer.name = "sgd"'])


def test_names_of_environment_variables_are_distinct() -> None:
    names = [path.replace(".", "_").upper() for path in setting_paths()]
    assert len(set(names)) == len(names)


def test_setting_paths_name_every_leaf_of_the_settings() -> None:
    leaves = []
    for name, value in Settings().model_dump().items():
        leaves += [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
    assert list(setting_paths()) == leaves


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("surprise = 1", "surprise"),
        ("[surprise]\na = 1", "surprise"),
        ("[chain]\nwindow = 2", "chain.window"),
        ("seed = 1.5", "seed"),
        ('seed = "1"', "seed"),
        ("seed = true", "seed"),
        ("seed = -1", "seed"),
        ("chain = 3", "chain"),
        ("[optimizer]\nlearning_rate = 0", "optimizer.learning_rate"),
        ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate"),
        ("[optimizer]\nlearning_rate = inf", "optimizer.learning_rate"),
        ('[optimizer]\nname = "adam"', "optimizer.name"),
        ("[optimizer]\nepochs = 2.0", "optimizer.epochs"),
        ('[task]\nlabels = "a"', "task.labels"),
        ("[task]\nlabels = [1, 2]", "task.labels.0"),
        ('[task]\nlabels = ["a", "a"]', "task"),
        ("[similarity]\nmin_examples = 64\nmax_examples = 32", "similarity"),
        ("seed = 1979-05-27", "seed"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name(text: str, names: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert "recipe.toml has settings that cannot be used" in caught.value.fact
    assert any(label == names or label.startswith(f"{names}.") for label in caught.value.values)
    assert "recipe new" in caught.value.hint


def test_a_refused_value_is_not_repeated() -> None:
    with pytest.raises(BadInput) as caught:
        parse('[optimizer]\nname = "Patient-Nr-4711"')
    assert "4711" not in str(caught.value)


def test_a_choice_that_is_none_of_them_is_told_them_once() -> None:
    with pytest.raises(BadInput) as caught:
        parse('[numerics]\ncompute = "float64"')
    assert caught.value.values == {
        "numerics.compute": "Input should be 'auto', 'float32', 'bfloat16' or 'float16'",
    }
    assert get_args(Compute) == ("auto", *get_args(Dtype))


def test_a_setting_under_its_old_name_is_told_the_new_one() -> None:
    with pytest.raises(BadInput) as caught:
        parse('[numerics]\ndtype = "bfloat16"')
    assert caught.value.hint == "numerics.dtype is now numerics.compute"
    with pytest.raises(UsageProblem) as refused:
        parse(overrides=["numerics.dtype=bfloat16"])
    assert refused.value.hint == "numerics.dtype is now numerics.compute"


@pytest.mark.parametrize("variable", ["CHAINCTL_NUMERICS_DTYPE", "CHAINCTL_NUMERICS__DTYPE"])
def test_a_variable_of_an_old_name_is_told_the_new_one(variable: str) -> None:
    with pytest.raises(UsageProblem, match=variable) as refused:
        parse(environment={variable: "bfloat16"})
    assert "numerics.dtype is now numerics.compute: set CHAINCTL_NUMERICS_COMPUTE" in refused.value.hint
    assert parse(environment={"CHAINCTL_NUMERICS_COMPUTE": "bfloat16"}).numerics.compute == "bfloat16"


@pytest.mark.parametrize("variable", ["CHAINCTL_CHAIN__WINDOW_SIZE", "CHAINCTL_CHAIN_WINDOWSIZE"])
def test_a_variable_that_would_be_ignored_is_told_the_nearest_setting(variable: str) -> None:
    with pytest.raises(UsageProblem, match=f"{variable} names no setting") as refused:
        parse(environment={variable: "3"})
    assert str(refused.value.values["expected"]).endswith("such as CHAINCTL_CHAIN_WINDOW_SIZE")


@pytest.mark.parametrize("text", ["seed =", "seed = 1\nseed = 2", "[chain\n", "seed: 1", '{"seed": 1}', "\0"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"recipe\.toml is not TOML: .+\(at (line \d+|end of document)"):
        parse(text)


@pytest.mark.parametrize("override", ["", "seed", "=1", "chain=3", "chain.window=3", "Seed=1", "chain.start.x=1"])
def test_an_override_that_names_no_setting_is_a_usage_problem(override: str) -> None:
    with pytest.raises(UsageProblem, match="names no setting") as caught:
        parse(overrides=[override])
    assert "chain.window_size=3" in str(caught.value)


@pytest.mark.parametrize("value", ["", "one", "1.5", "[1]", "-1", "true", "3\nepochs = 9", "3 4"])
def test_an_override_of_a_wrong_type_is_refused(value: str) -> None:
    with pytest.raises(UsageProblem, match="--set or the environment"):
        parse(overrides=[f"seed={value}"])
    with pytest.raises(UsageProblem, match="--set or the environment"):
        parse(environment={"CHAINCTL_SEED": value})


def test_a_wrong_value_is_the_recipes_where_the_recipe_has_one_too() -> None:
    with pytest.raises(BadInput, match=r"recipe\.toml has settings") as caught:
        parse("seed = -1", overrides=["optimizer.epochs=0"])
    assert set(caught.value.values) == {"seed", "optimizer.epochs"}


def test_an_override_reaches_no_section_that_is_no_table() -> None:
    with pytest.raises(BadInput):
        parse("chain = 3", overrides=["chain.window_size=2"])


# Written recipes.


def test_every_setting_is_explained_and_nothing_else() -> None:
    assert EXPLAINED.keys() == setting_paths().keys()


def test_a_written_recipe_parses_back_to_the_same_settings() -> None:
    chosen = Settings(
        seed=2**53 - 1,
        task=TaskSettings(labels=("bénin", 'the "other"', "back\\slash", "# no comment", "two\nlines", "'''")),
        chain=ChainSettings(foresight="adapters", start=3, window_size=2, min_improvement=1e-9, global_weight=0.0),
        optimizer=OptimizerSettings(learning_rate=1e22, momentum=0.9),
    )
    assert parse(write_recipe(chosen)) == chosen
    assert parse(write_recipe(Settings())) == Settings()


def test_a_written_recipe_has_every_setting_on_a_line_with_its_meaning() -> None:
    text = write_recipe(Settings())
    for path, meaning in EXPLAINED.items():
        key = path.rpartition(".")[2]
        assert any(line.startswith(f"{key} = ") and line.endswith(meaning) for line in text.splitlines()), path
    document = tomllib.loads(text)
    assert [*document] == [*Settings.model_fields]
    assert {f"{s}.{k}" for s, v in document.items() if isinstance(v, dict) for k in v} | {
        "seed"
    } == setting_paths().keys()


def column_task(text: str) -> TaskSettings:
    return TaskSettings(text_column=text)


def label_task(text: str) -> TaskSettings:
    return TaskSettings(labels=(text,))


@pytest.mark.parametrize("make", [column_task, label_task])
@pytest.mark.parametrize(
    "character", [chr(code) for code in (*range(0x20), 0x22, 0x5C, 0x7F, 0x85, 0x2028, 0xFEFF, 0x1F600)]
)
def test_any_character_of_a_label_or_column_survives_a_written_recipe(
    make: Callable[[str], TaskSettings], character: str
) -> None:
    chosen = Settings(task=make(f"a{character}b"))
    assert parse(write_recipe(chosen)) == chosen


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12), unique=True),
    rate=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**53 - 1),
)
def test_any_settings_survive_a_written_recipe(labels: list[str], rate: float, seed: int) -> None:
    chosen = Settings(
        seed=seed, task=TaskSettings(labels=tuple(labels)), optimizer=OptimizerSettings(learning_rate=rate)
    )
    assert parse(write_recipe(chosen)) == chosen


def test_every_preset_is_a_recipe() -> None:
    for name, chosen in PRESETS.items():
        assert parse(write_recipe(chosen)) == chosen, name
    paper = PRESETS["instruction"]
    assert (paper.optimizer.steps, paper.optimizer.batch_size, paper.encoding.max_length) == (10, 16, 512)


# Learning rates and steps.


@settings(max_examples=100, deadline=None)
@given(rounds=st.integers(1, 200), top=st.floats(1e-5, 1.0), share=st.floats(0.0, 1.0))
def test_a_cosine_schedule_falls_from_the_first_rate_to_the_last(rounds: int, top: float, share: float) -> None:
    optimizer = OptimizerSettings(
        learning_rate=top, schedule="cosine", schedule_rounds=rounds, final_learning_rate=top * share
    )
    rates = [optimizer.rate(number) for number in range(rounds + 3)]
    assert rates[0] == pytest.approx(top)
    assert rates[rounds:] == pytest.approx([top * share] * 3)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rates))
    middle = optimizer.rate(rounds // 2) + optimizer.rate(rounds - rounds // 2)
    assert middle == pytest.approx(top + top * share)


def test_a_cosine_schedule_is_that_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    theirs = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=20, eta_min=0.01)
    ours = OptimizerSettings(learning_rate=0.3, schedule="cosine", schedule_rounds=20, final_learning_rate=0.01)
    for number in range(21):
        assert ours.rate(number) == pytest.approx(schedule.get_last_lr()[0])
        theirs.step()
        schedule.step()


def test_steps_are_as_many_as_set_or_as_the_texts_ask_for() -> None:
    epochs = OptimizerSettings(epochs=3, batch_size=4)
    assert [epochs.step_count(count) for count in (1, 4, 5)] == [3, 3, 6]
    fixed = OptimizerSettings(steps=10, epochs=3, batch_size=4)
    assert [fixed.step_count(count) for count in (1, 400)] == [10, 10]


@pytest.mark.parametrize(
    "text",
    [
        '[optimizer]\nschedule = "cosine"\nround_decay = 0.9',
        '[optimizer]\nschedule = "cosine"\nfinal_learning_rate = 1.0',
        '[encoding]\npadding_side = "left"\npacking = true\n[task]\nkind = "causal-lm"',
        "[encoding]\npacking = true",
        '[prompt]\nformat = "chat"',
        '[prompt]\ntemplate = "mine"',
    ],
)
def test_settings_that_exclude_each_other_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="settings that cannot be used"):
        parse(text)


def test_another_method_replaces_the_section_before_it_is_overridden() -> None:
    recipe = "[chain]\nwindow_size = 3\nstart = 1\n"
    probe = parse_recipe(recipe, source="recipe", method="linear-probe")
    assert probe.chain == default_settings("linear-probe")
    with pytest.raises(UsageProblem, match="cannot be used") as caught:
        parse_recipe(recipe, source="recipe", method="linear-probe", overrides=["chain.window_size=3"])
    assert "chain.window_size" in caught.value.values
    back = parse_recipe('[chain]\nmethod = "no-ft"\n', source="recipe", method="chain", overrides=["chain.start=2"])
    assert isinstance(back.chain, ChainSettings)
    assert back.chain.start == 2
    kept = parse_recipe(recipe, source="recipe", method="chain")
    assert isinstance(kept.chain, ChainSettings)
    assert kept.chain.window_size == 3
    with pytest.raises(UsageProblem, match="unknown method"):
        parse_recipe(recipe, source="recipe", method="nonsense")


@pytest.mark.parametrize("written", ["2025-01-02", '"2025-01-02"'])
def test_a_date_may_be_a_date_of_toml_or_a_text(written: str) -> None:
    chosen = parse(f"[prompt]\ndate = {written}\n")
    assert chosen.prompt.date == "2025-01-02"
    assert parse(write_recipe(chosen)) == chosen == parse(overrides=[f"prompt.date={written}"])


@pytest.mark.parametrize("written", ["2025-01-02T10:00:00", '"2025-02-30"', '"soon"', "20250102", '""'])
def test_a_date_is_a_day_of_the_calendar(written: str) -> None:
    with pytest.raises(BadInput, match=r"prompt\.date"):
        parse(f"[prompt]\ndate = {written}\n")
