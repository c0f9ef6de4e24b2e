"""MLflow as one more place that shows a run; only this module imports it, and only when asked."""

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import gaierror
from typing import Any, Final, NamedTuple

from cache_schema.documents import read_object
from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from training.config import read_config
from training.provenance import read_provenance
from training.runlog import LOG_NAME, LOSS_NAME, Outcome, read_rounds, scalars_of

EXPERIMENT: Final = "fedunetmm"
"""Name of the MLflow experiment that all runs belong to."""

ID_NAME: Final = "mlflow.json"
"""The file in a run's folder that keeps the id of its MLflow run."""

ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What MLflow is told unless the user has: by itself it would report to its makers, wait minutes for a
server that is gone, and write its own lines between ours."""

MOST_AT_ONCE: Final = 1000
"""Values that MLflow takes in one request."""

MOST_TIME: Final = 0.1
"""Share of the time that sending may cost while a run trains."""


class _Round(NamedTuple):
    """The scalars of one round, not sent yet."""

    step: int
    time_ms: int
    scalars: dict[str, float]


class MlflowBoard:
    """Shows a run in MLflow, on a server or in a database.

    One run folder is one MLflow run. What cannot be sent waits for the next round; what is left at the
    end is in the run's log still, from where a resumed run sends it.

    Attributes:
        problem: After closing, what was not sent and why, or None.
    """

    def __init__(self, uri: str) -> None:
        """Reach MLflow; no run is begun there yet.

        Args:
            uri: Whatever MLflow takes, such as `http://host:5000` or `sqlite:///mlflow.db`.

        Raises:
            InputError: If MLflow is not installed or nobody answers.
        """
        self.problem: str | None = None
        self._uri = uri
        self._server = re.sub(r"//[^/]*@", "//", uri)  # a password belongs into no log
        self._run_id = ""
        self._unsent: deque[_Round] = deque()
        self._rest_until = 0.0
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError as error:
            raise InputError(
                f"--mlflow needs the package {error.name}; install this project with its extra `mlflow`"
            ) from error
        with self._reaching("start it, give another address, or leave the option out"):
            self._client = MlflowClient(uri)
            self._client.get_experiment_by_name(EXPERIMENT)

    def open(self, run: Path) -> None:
        """Begin a run's MLflow run or go on with it; rounds of the log that it lacks are sent first.

        Raises:
            InputError: If MLflow does not answer or does not know the run.
        """
        shown: set[int] = set()
        if (run / ID_NAME).exists():
            self._run_id = _read_id(run)
            with self._reaching(
                f"give the one that {run} was begun with, or remove {run / ID_NAME} to begin anew there"
            ):
                self._client.update_run(self._run_id, status="RUNNING")
                history = self._client.get_metric_history(self._run_id, LOSS_NAME)
                shown = {metric.step for metric in history}
        with self._reaching("once that is mended, go on with --resume"):
            self._run_id = self._run_id or self._begin(run)
            self._describe(run)
        records = read_rounds(run) if (run / LOG_NAME).exists() else ()
        for record in records:
            if record.round not in shown:
                self._keep(scalars_of(record), record.round)
        self._attempt(self._send)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Send the scalars of one round, or keep them for later."""
        self._keep(scalars, step)
        if time.monotonic() >= self._rest_until:
            self._attempt(self._send)

    def close(self, outcome: Outcome) -> str | None:
        """Send what is left and how the run ended.

        Returns:
            What could not be sent and why, or None.
        """
        reason = self._attempt(self._send) or self._attempt(
            lambda: self._client.set_terminated(self._run_id, status=outcome.upper())
        )
        if reason is not None:
            self.problem = (
                f"MLflow at {self._server} was not told about {len(self._unsent)} round(s) and that the "
                f"run has {outcome} ({reason}); the same command with --resume tells it"
            )
        return self.problem

    def _begin(self, run: Path) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._create_experiment()
        run_id: str = self._client.create_run(number, run_name=run.resolve().name).info.run_id
        write_atomically(run / ID_NAME, json.dumps({"run": run_id}) + "\n")
        return run_id

    def _create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.create_experiment(EXPERIMENT)
        except MlflowException:  # another run has just done so
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _describe(self, run: Path) -> None:
        """Send settings and provenance; MLflow takes the same ones again, and no others."""
        from mlflow.entities import Param, RunTag

        provenance = read_provenance(run)
        settings = read_config(run).model_dump()
        self._client.log_batch(
            self._run_id,
            params=[Param(name, str(value)) for name, value in settings.items()],
            tags=[RunTag(name, str(value)) for name, value in _flat(provenance).items()],
        )

    def _keep(self, scalars: Mapping[str, float], step: int) -> None:
        self._unsent.append(_Round(step, round(1000 * time.time()), dict(scalars)))

    def _attempt(self, act: Callable[[], None]) -> str | None:
        """Do something that training must not stop for, and give the reason if it fails."""
        start = time.monotonic()
        try:
            act()
        except Exception as error:  # noqa: BLE001 - MLflow's stores raise whatever their drivers do
            return self._reason(error)
        else:
            return None
        finally:
            stop = time.monotonic()
            self._rest_until = stop + (stop - start) * (1.0 / MOST_TIME - 1.0)

    def _send(self) -> None:
        from mlflow.entities import Metric

        while self._unsent:
            step, time_ms, scalars = self._unsent[0]
            metrics = [Metric(name, value, time_ms, step) for name, value in scalars.items()]
            metrics.reverse()  # the loss, by which `open` knows a round, comes last
            for start in range(0, len(metrics), MOST_AT_ONCE):
                self._client.log_batch(self._run_id, metrics[start : start + MOST_AT_ONCE])
            self._unsent.popleft()

    @contextmanager
    def _reaching(self, advice: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"--mlflow {self._server} cannot be used ({self._reason(error)}); {advice}"
            ) from error

    def _reason(self, error: BaseException) -> str:
        """Put an error into one line: the network's own, if it was that, without its wrappings."""
        chain = [error]
        while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(inner)
        network = (ConnectionError, TimeoutError, gaierror)
        told = next((each for each in reversed(chain) if isinstance(each, network)), error)
        line = (str(told).strip() or type(told).__name__).splitlines()[0]
        return line.replace(self._uri, self._server)


def _read_id(run: Path) -> str:
    advice = "remove it to begin another MLflow run"
    identity = read_object(run / ID_NAME, advice).get("run")
    if not isinstance(identity, str):
        raise InputError(f"{run / ID_NAME} does not tell its MLflow run; {advice}")
    return identity


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested keys into one, such as `packages.torch`."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
