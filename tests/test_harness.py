"""The harness stage: what a log of lm-evaluation-harness becomes, what is refused, and, where it is installed, itself.

Its agreement with the harness' own backend, request by request, is proved by `just lm-eval`.
"""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lm_eval_agreement import write_tasks
from schemas.errors import BadInput, UsageProblem
from stages.harness import marked, run, samples_digest
from stages.process import intent
from stages.suites.suite import summarise
from tests import fleet
from tests.fleet.benchmark_files import save_many
from tests.fleet.speaker import Speaker, make_speaker

INSTALLED = importlib.util.find_spec("lm_eval") is not None


def sample(number: int, *, filter_: str = "none", **metrics: Any) -> dict[str, Any]:
    hashes = {"doc_hash": f"d{number}", "prompt_hash": f"p{number}", "target_hash": "t"}
    return {"doc_id": number, "filter": filter_, "metrics": list(metrics), **metrics, **hashes}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return make_speaker(tmp_path_factory.mktemp("speaker"))


def test_each_metric_is_counted_by_task_and_filter() -> None:
    samples = {
        "b": [sample(0, acc=1.0, acc_norm=0.0), sample(1, acc=0.0, acc_norm=0.0)],
        "a": [
            sample(0, filter_="strict", exact_match=1.0),
            sample(0, filter_="loose", exact_match=True),
            sample(1, acc=1, word_perplexity=(-3.0, 4)),
        ],
    }
    scores = {score.metric: score for score in summarise(list(marked(samples)))}
    assert sorted(scores) == ["acc", "acc_norm", "exact_match,loose", "exact_match,strict"]
    assert [(group.name, group.count, group.value) for group in scores["acc"].groups] == [("a", 1, 1.0), ("b", 2, 0.5)]


def test_what_is_no_share_is_no_score() -> None:
    with pytest.raises(BadInput, match="no metric between 0 and 1"):
        list(marked({"a": [sample(0, word_perplexity=(-3.0, 4), ppl=12.5)]}))


def test_a_digest_covers_documents_prompts_and_tasks() -> None:
    one, other = sample(0, acc=1.0), sample(1, acc=1.0)
    found = [{"a": [one]}, {"b": [one]}, {"a": [other]}, {"a": [one, other]}, {"a": [one | {"target_hash": "u"}]}]
    assert len({samples_digest(samples) for samples in found}) == 5
    assert samples_digest({"a": [one], "b": [other]}) == samples_digest({"b": [other], "a": [one]})


def test_a_folder_that_is_not_there_is_refused(speaker: Speaker, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a folder of task files"):
        run(**speaker.places, tasks=["x"], tasks_dir=tmp_path / "absent", out=tmp_path / "out")


def test_a_dry_run_runs_no_code_of_the_tasks(speaker: Speaker, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    with intent.rehearsing() as noted:
        run(**speaker.places, tasks=["seaside_choice"], tasks_dir=tasks, out=tmp_path / "runs" / "out")
    assert noted.reads[tasks] == "tasks"
    assert noted.writes == {tmp_path / "runs" / "out": None}
    assert [path.name for path in tmp_path.iterdir()] == ["tasks"]


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_extra_it_says_how_to_get_it(speaker: Speaker, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"chainctl\[eval\]"):
        run(**speaker.places, tasks=["x"], tasks_dir=tmp_path, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
def test_tasks_are_asked_offline_and_leave_nothing_but_the_artifact(speaker: Speaker, tmp_path: Path) -> None:
    tasks, out = write_tasks(tmp_path / "tasks"), tmp_path / "runs" / "out"
    places: dict[str, Any] = {"tasks": ["seaside_choice", "seaside_write"], "tasks_dir": tasks, "out": out, "limit": 5}
    made = run(**speaker.places, **places)
    assert [score.metric for score in made.manifest.scores] == ["acc", "acc_norm", "exact_match"]
    assert made.manifest.example_count == 10
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert run(**speaker.places, **places).digest == made.digest
    with pytest.raises(BadInput, match="has no task 'unknown'"):
        run(**speaker.places, **{**places, "tasks": ["unknown"], "out": tmp_path / "other"})


def test_the_command_asks_says_and_prints_one_object(speaker: Speaker, tmp_path: Path) -> None:
    places = [
        "--model",
        speaker.folder / "model",
        "--plan",
        speaker.folder / "plan",
        "--state",
        speaker.folder / "state",
    ]
    asks = ["--benchmark", "mmlu", "--data", save_many(tmp_path / "mmlu"), "--shots", "0", "--limit", "3"]
    done = fleet.chainctl("eval", *places, *asks, "--out", tmp_path / "out", "--json")
    answer = json.loads(done.stdout)
    assert [group["name"] for group in answer["scores"][0]["groups"]] == ["algebra", "tides"]
    assert "on 6 questions; mean of 2 groups" in done.stderr
    described = fleet.chainctl("inspect", tmp_path / "out").stdout
    assert "mmlu, 6 questions" in described


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "nothing to evaluate on"),
        (["--benchmark", "mmlu"], "nothing to evaluate on"),
        (["--lm-eval", "x"], "--lm-eval needs --lm-eval-path"),
        (["--lm-eval", "x", "--lm-eval-path", ".", "--data", "y"], "--lm-eval needs --lm-eval-path"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], says: str, tmp_path: Path) -> None:
    places = [part for name in ("model", "plan", "state", "out") for part in (f"--{name}", tmp_path / name)]
    done = fleet.chainctl("eval", *places, *options, check=False)
    assert done.returncode == UsageProblem.exit_code
    assert says in done.stderr


def test_the_data_set_cache_is_where_temporary_files_go(
    speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds texts, and the folder of the output may be a stick."""
    seen: list[Path] = []

    def ask(*_: object, **__: object) -> None:
        seen.append(Path(os.environ["HF_DATASETS_CACHE"]).parent)
        raise BadInput("asked")

    monkeypatch.setattr("stages.harness.ask", ask)
    machine = replace(speaker.places["machine"], scratch_dir=tmp_path / "scratch")
    inputs = speaker.places | {"machine": machine}
    with pytest.raises(BadInput, match="asked"):
        run(**inputs, tasks_dir=tmp_path, tasks=["one"], out=tmp_path / "out" / "scores")
    assert seen == [tmp_path / "scratch"]
