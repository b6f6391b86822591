"""MLflow: metrics by round and settings as parameters, in a database of SQLite; no server, no telemetry.

Runs are made by `MlflowClient`, which adds nothing of its own to them: no user, no program, no commit, no host.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
import alembic  # noqa: F401 -- mlflow imports both late, and what is missing is to be known before any work
import sqlalchemy  # noqa: F401
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from stages.trackers.tracker import PROJECT, Held, TrackedRun

PLAN = "chainctl.plan"  # tag by which a run is found again
NOWHERE = "mlflow-artifacts:/"  # of files, which our runs do not have: MLflow would record the folder it was started in
ROOT_OF_FILES = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # the same for the experiment that MLflow makes of its own
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


class Store:
    """`DIRECTORY/mlflow.db`."""

    def __init__(self, directory: Path, run: TrackedRun) -> None:
        address = f"sqlite:///{directory.resolve() / 'mlflow.db'}"
        self.shown_by = f"mlflow ui --backend-store-uri {address} (of the package mlflow)"
        os.environ.setdefault(ROOT_OF_FILES, NOWHERE)
        self._client = MlflowClient(tracking_uri=address)
        self._run = self._found(run) or self._made(run)
        params = [Param(name, str(value)) for name, value in run.settings.items() if name not in self._run.data.params]
        self._client.log_batch(self._run.info.run_id, params=params)

    def held(self) -> Held:
        """What the store holds of the run."""
        run_id, names = self._run.info.run_id, self._run.data.metrics
        return frozenset(
            (point.step, name) for name in names for point in self._client.get_metric_history(run_id, name)
        )

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """A point of each curve."""
        now = time.time_ns() // 10**6
        points = [Metric(name, value, now, number) for name, value in metrics.items()]
        self._client.log_batch(self._run.info.run_id, metrics=points)

    def close(self) -> None:
        """The run is shown as finished, until it is opened again."""
        self._client.set_terminated(self._run.info.run_id)

    def _found(self, run: TrackedRun) -> Run | None:
        experiment = self._client.get_experiment_by_name(PROJECT)
        ids = [experiment.experiment_id] if experiment else []
        found = self._client.search_runs(ids, f"tags.`{PLAN}` = '{run.plan}'", max_results=1) if ids else []
        return found[0] if found else None

    def _made(self, run: TrackedRun) -> Run:
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT, NOWHERE)
        return self._client.create_run(number, tags={PLAN: run.plan}, run_name=run.name)


def open_tracker(directory: Path, run: TrackedRun) -> Store:
    """A run, begun or continued."""
    return Store(directory, run)
