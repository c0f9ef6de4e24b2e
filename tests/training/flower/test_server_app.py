import tomllib
from pathlib import Path

import pytest
from flwr.serverapp import Grid

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from cache_schema.preprocessing import record_preprocessing
from training.config import TrainConfig
from training.flower.messages import Introduction
from training.flower.server_app import coordinate, read_settings

APP = Path(__file__).parents[3] / "flower/pyproject.toml"
OWN = {"run", "resume", "clients", "join-seconds", "reply-seconds", "cache", "trust-cache"}


class EmptyGrid(Grid):
    """Nobody is there, and nobody should be asked."""

    set_run = run = create_message = push_messages = pull_messages = send_and_receive = None

    def get_node_ids(self):
        raise AssertionError


@pytest.fixture
def options() -> dict:
    return tomllib.loads(APP.read_text())["tool"]["flwr"]["app"]["config"]


def test_the_app_has_the_settings_of_training_with_the_same_defaults(options):
    names = {name.replace("_", "-") for name in TrainConfig.model_fields} - {"checkpoint-steps"}
    assert options.keys() == names | OWN
    assert read_settings(options) == TrainConfig()


def test_settings_are_taken_as_given(options):
    given = {
        "tumour-share": 0.5,
        "strategy": "fedprox",
        "strategy-options": "mu=0.1 x=a",
        "rounds": 2,
    }
    config = read_settings({**options, **given})
    assert (config.tumour_share, config.strategy, config.rounds) == (0.5, "fedprox", 2)
    assert config.strategy_options == {"mu": "0.1", "x": "a"}


def test_a_network_of_three_dimensions_gets_what_is_usual_for_it(options):
    config = read_settings({**options, "model": "transbts", "model-options": "size=tiny"})
    assert (config.crop, config.batch_size, config.weights) == (128, 2, "none")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("rounds", 0, "--rounds: "),
        ("strategy", "fedsgd", "--strategy fedsgd: unknown"),
        ("strategy-options", "mu", "--strategy-option mu: write it as NAME=VALUE"),
        ("run", "runs/fed", "--run-config 'run=\"runs/fed\"': give an absolute path"),
    ],
)
def test_a_wrong_option_is_named_before_anybody_is_asked(name, value, line, options, tmp_path):
    given = {**options, "run": str(tmp_path / "run"), "weights": "none", name: value}
    with pytest.raises(InputError, match=f"^{line}"):
        coordinate(EmptyGrid(), given)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten(options, tiny_run):
    with pytest.raises(InputError, match="holds a run already"):
        coordinate(EmptyGrid(), {**options, "run": str(tiny_run), "weights": "none"})


def test_clients_who_made_their_slices_in_different_ways_are_refused_before_training(
    options, small_cache, tmp_path, monkeypatch
):
    record = record_preprocessing(read_manifest(small_cache))
    odd = record.model_copy(update={"normalize": "percentile"})

    class Clients:
        def __init__(self, *_):
            self.introductions = {
                client: Introduction(client, 10, 2, "digest", preprocessing, "1.2")
                for client, preprocessing in enumerate((record, record, odd))
            }

        def gather(self, _):
            pass

    monkeypatch.setattr("training.flower.server_app.RemoteClients", Clients)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"^clients 0 and 2 .*--normalize zscore and percentile"):
        coordinate(EmptyGrid(), {**options, "run": str(run), "weights": "none"})
    assert not run.exists()
