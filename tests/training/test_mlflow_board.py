"""A run in MLflow: a real client on a real store, no answer, a lost server, and going on."""

import builtins
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import digest, read_manifest
from training.central import run_central
from training.config import CENTRAL
from training.federated.engine import run_federation
from training.mlflow_board import ENVIRONMENT, EXPERIMENT, ID_NAME, MlflowBoard
from training.runlog import open_log, read_rounds, scalars_of

# MLflow's models of its tables use a loader that newer SQLAlchemy calls deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables, which take a second to make."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        MlflowBoard(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch):
    """The address of a database that belongs to one test."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def silent_address(monkeypatch):
    """The address of a port where nobody listens."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def begun(tiny_run, tmp_path):
    """The folder of a run that is about to train its first round."""
    run = tmp_path / "begun"
    run.mkdir()
    for name in ("config.json", "provenance.json"):
        shutil.copy(tiny_run / name, run / name)
    return run


@pytest.fixture
def records(tiny_run):
    return read_rounds(tiny_run)


def client_of(store):
    from mlflow.tracking import MlflowClient

    return MlflowClient(store)


def shown(store):
    """Read the runs of the experiment, the oldest first."""
    client = client_of(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return list(found)


def losses(store, run_id, name="train/loss"):
    history = client_of(store).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def expected(records, name="train/loss"):
    return [(record.round, scalars_of(record)[name]) for record in records]


class Cut:
    """Stands in front of MLflow's client; while it is down nobody answers."""

    def __init__(self, client):
        self._client, self.down, self.calls = client, False, 0

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls += 1
            if self.down:
                raise ConnectionRefusedError(111, "Connection refused")
            return getattr(self._client, name)(*arguments, **named)

        return call


@pytest.fixture
def board(store):
    """A board on a real store, whose line can be cut."""
    board = MlflowBoard(store)
    board._client = Cut(board._client)
    return board


def test_a_federated_run_is_one_mlflow_run_with_settings_provenance_and_scalars(
    store, small_cache, tiny_config, tmp_path, observer
):
    run = tmp_path / "some-run"
    board = MlflowBoard(store)
    run_federation(tiny_config, small_cache, run, observer, boards=(board,))
    (found,) = shown(store)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "some-run"
    assert json.loads((run / ID_NAME).read_text()) == {"run": found.info.run_id}
    settings = tiny_config.model_dump()
    assert found.data.params == {name: str(value) for name, value in settings.items()}
    assert found.data.tags["manifest"] == digest(read_manifest(small_cache))
    assert found.data.tags["device"] == "cpu"
    assert "packages.torch" in found.data.tags
    for name in scalars_of(observer.rounds[0]):
        assert losses(store, found.info.run_id, name) == expected(observer.rounds, name)
    assert board.problem is None


def test_central_training_is_shown_epoch_by_epoch(
    store, small_cache, tiny_config, tmp_path, observer
):
    config = tiny_config.model_copy(update={"strategy": CENTRAL})
    run_central(config, small_cache, tmp_path / "run", observer, boards=(MlflowBoard(store),))
    (found,) = shown(store)
    assert losses(store, found.info.run_id) == expected(observer.rounds)
    assert found.data.params["strategy"] == CENTRAL


def test_mlflow_decides_nothing_about_the_result(
    store, small_cache, tiny_config, tiny_run, tmp_path, observer
):
    run = tmp_path / "run"
    run_federation(tiny_config, small_cache, run, observer, boards=(MlflowBoard(store),))
    for name in ("config.json", "model.safetensors"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes()


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("a damaged shard"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_run_that_was_ended_goes_on_in_the_same_mlflow_run(
    error, status, store, small_cache, tiny_config, tmp_path, observer
):
    run, honest = tmp_path / "run", observer.step

    def step(**told):
        honest(**told)
        if told["round_number"] == 2:
            raise error

    observer.step = step
    with pytest.raises(type(error)):
        run_federation(tiny_config, small_cache, run, observer, boards=(MlflowBoard(store),))
    (found,) = shown(store)
    assert found.info.status == status
    assert losses(store, found.info.run_id) == expected(observer.rounds[:1])
    del observer.step
    run_federation(
        tiny_config, small_cache, run, observer, resume=True, boards=(MlflowBoard(store),)
    )
    (again,) = shown(store)
    assert again.info.run_id == found.info.run_id
    assert again.info.status == "FINISHED"
    assert losses(store, found.info.run_id) == expected(observer.rounds)


def test_two_runs_share_the_experiment(store, begun, tmp_path):
    other = Path(shutil.copytree(begun, tmp_path / "other"))
    for run in (begun, other):
        with open_log(run, (MlflowBoard(store),)):
            pass
    assert [found.info.run_name for found in shown(store)] == ["begun", "other"]


def test_rounds_from_before_mlflow_was_asked_for_are_shown_too(store, begun, records):
    with open_log(begun) as log:
        log.round_done(records[0])
    with open_log(begun, (MlflowBoard(store),)) as log:
        log.round_done(records[1])
    (found,) = shown(store)
    assert losses(store, found.info.run_id) == expected(records)


def test_what_a_lost_server_missed_is_sent_when_it_is_back(board, store, begun, records):
    with open_log(begun, (board,)) as log:
        board._client.down = True
        log.round_done(records[0])
        board._client.down = False
        log.round_done(records[1])
    (found,) = shown(store)
    assert board.problem is None
    assert found.info.status == "FINISHED"
    for name in scalars_of(records[0]):
        assert losses(store, found.info.run_id, name) == expected(records, name)


def test_what_stays_unsent_is_told_logged_and_sent_by_resuming(board, store, begun, records):
    with open_log(begun, (board,)) as log:
        log.round_done(records[0])
        board._attempt(board._send)
        board._client.down = True
        log.round_done(records[1])
    (found,) = shown(store)
    assert found.info.status == "RUNNING"
    assert losses(store, found.info.run_id) == expected(records[:1])
    assert board.problem == (
        f"MLflow at {store} was not told about 1 round(s) and that the run has finished "
        "([Errno 111] Connection refused); the same command with --resume tells it"
    )
    last = json.loads((begun / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["problem"]) == ("unsent", board.problem)
    with open_log(begun, (MlflowBoard(store),)):
        pass
    (found,) = shown(store)
    assert found.info.status == "FINISHED"
    assert losses(store, found.info.run_id) == expected(records)


def test_a_server_that_answers_slowly_gets_a_tenth_of_the_time(board, begun, records, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.mlflow_board.time.monotonic", lambda: now[0])
    board.open(begun)

    def slowly(*arguments, **named):
        slowly.calls += 1
        now[0] += 5.0
        raise TimeoutError("timed out")

    slowly.calls = 0
    board._client = type("Slow", (), {"log_batch": slowly})()
    for step in range(1, 101):
        now[0] += 1.0
        board.add(scalars_of(records[0]), step)
    assert slowly.calls == 3  # at 1, 51 and 101 s of training and waiting
    assert len(board._unsent) == 100


def test_more_scalars_than_mlflow_takes_at_once_are_all_sent(board, store, begun):
    board.open(begun)
    board.add({"train/loss": 0.5} | {f"clients/loss_{k}": 1.0 for k in range(1500)}, 1)
    assert board.close("finished") is None
    (found,) = shown(store)
    assert len(found.data.metrics) == 1501


def test_a_server_that_does_not_answer_is_one_line(silent_address):
    with pytest.raises(InputError) as caught:
        MlflowBoard(silent_address)
    assert str(caught.value) == (
        f"--mlflow {silent_address} cannot be used ([Errno 111] Connection refused); start it, give "
        "another address, or leave the option out"
    )


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:///{tmp}/file/mlflow.db"])
def test_an_address_that_cannot_be_used_is_one_line(uri, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--mlflow .* cannot be used") as caught:
        MlflowBoard(uri.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_password_is_not_repeated(silent_address):
    with pytest.raises(InputError) as caught:
        MlflowBoard(silent_address.replace("//", "//someone:secret@"))
    assert "secret" not in str(caught.value)


def test_another_server_does_not_know_the_run(store, empty_store, begun, tmp_path):
    with open_log(begun, (MlflowBoard(store),)):
        pass
    elsewhere = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'elsewhere.db')}"
    with (
        pytest.raises(InputError, match=r"not found.*remove .*mlflow\.json to begin anew there"),
        open_log(begun, (MlflowBoard(elsewhere),)),
    ):
        pass


def test_a_damaged_id_is_named(store, begun):
    (begun / ID_NAME).write_text("{")
    with pytest.raises(InputError, match=r"mlflow\.json cannot be read"):
        MlflowBoard(store).open(begun)


def test_an_experiment_that_another_run_has_just_made_is_used(board, store, begun, monkeypatch):
    client_of(store).create_experiment(EXPERIMENT)
    honest, late = board._client.get_experiment_by_name, [None]
    board._client.get_experiment_by_name = lambda name: late.pop() if late else honest(name)
    board.open(begun)
    assert board.close("finished") is None
    assert len(shown(store)) == 1


def test_without_mlflow_the_extra_is_named(monkeypatch):
    honest = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "mlflow":
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        return honest(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"--mlflow needs the package mlflow; .* extra `mlflow`"):
        MlflowBoard("sqlite:///mlflow.db")


def test_training_without_the_option_does_not_import_mlflow():
    source = (
        "import sys, training.central, training.federated.engine, training.mlflow_board\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=False).returncode == 0


def test_what_the_user_has_set_is_kept(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    MlflowBoard(store)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_the_command_line_names_a_server_that_does_not_answer_and_writes_nothing(
    silent_address, small_cache, tmp_path
):
    arguments = [
        "fed",
        "--cache",
        small_cache,
        "--run",
        tmp_path / "run",
        "--mlflow",
        silent_address,
    ]
    result = subprocess.run(
        [sys.executable, "-c", "import cli; cli.run_train()", *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: --mlflow {silent_address} cannot be used")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
