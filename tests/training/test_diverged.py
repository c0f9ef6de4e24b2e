"""Networks that give NaN: one line that names them, whatever they are used for."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from cache_schema.errors import InputError
from training.checkpoint import load_weights, save_weights
from training.config import read_config
from training.data import VolumeDataset
from training.evaluate import evaluate
from training.export import export_run
from training.models.trained import trained_model
from training.predict import NotFiniteError, predict_labels, predict_probabilities
from training.predictor import open_predictor
from training.report.panels import case_panels
from training.report.record import read_runs
from training.score_files import write_evaluation

SPOILED = {
    "holds NaN": ("layers.4.bias", float("nan")),
    "not numbers": ("layers.1.running_var", -1.0),  # of which BatchNorm takes the root
}
"""What is said, by the tensor of which one value is replaced."""


@pytest.fixture(params=SPOILED)
def told(request):
    return request.param


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def spoil(run, told):
    name, value = SPOILED[told]
    state, round_number = load_weights(run)
    state[name][1] = value
    save_weights(run, state, round_number=round_number)


def uses(run, cache, tmp_path):
    """Everything that a network of a run is used for."""
    image = np.ones((2, 4, 24, 20), np.float16)
    return {
        "eval": lambda: evaluate(run, cache, device="cpu", on_case=lambda *_: None),
        "labels": lambda: open_predictor(run, device="cpu")(image),
        "probabilities": lambda: open_predictor(run, device="cpu", keeps_probabilities=True)(image),
        "export": lambda: export_run(run, tmp_path / "model.pt2"),
    }


def test_the_tensors_that_hold_nan_are_told(run):
    spoil(run, "holds NaN")
    with pytest.raises(InputError, match=r"model.safetensors holds NaN \(in layers\.4\.bias\), so"):
        trained_model(run, read_config(run))
    state, round_number = load_weights(run)
    state["layers.4.weight"][0] = float("nan")
    save_weights(run, state, round_number=round_number)
    with pytest.raises(InputError, match=r"holds NaN \(in layers\.4\.\w+ and 1 more\), so"):
        trained_model(run, read_config(run))


@pytest.mark.parametrize("use", ["eval", "labels", "probabilities", "export"])
def test_a_network_that_gives_nan_is_named_in_one_line_and_nothing_is_written(
    use, told, run, small_cache, tmp_path
):
    spoil(run, told)
    with pytest.raises(InputError) as caught:
        uses(run, small_cache, tmp_path)[use]()
    line = str(caught.value)
    assert line.startswith(f"{run / 'model.safetensors'}")
    assert told in line
    assert "--learning-rate" in line
    assert "\n" not in line
    assert not (tmp_path / "model.pt2").exists()


def test_a_report_draws_no_picture_of_nan(told, run, small_cache):
    write_evaluation(run, evaluate(run, small_cache, device="cpu", on_case=lambda *_: None))
    tests = VolumeDataset(small_cache, split="test")
    (record,) = read_runs([run], tests.manifest)
    spoil(run, told)
    with pytest.raises(InputError, match=told):
        case_panels(record, tests, "cpu")


def test_eval_ends_with_1_and_writes_no_scores(told, run, small_cache):
    spoil(run, told)
    command = ["eval", str(run), "--cache", str(small_cache), "--device", "cpu"]
    result = CliRunner().invoke(cli.train, command)
    assert isinstance(result.exception, InputError)
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize("predict", [predict_labels, predict_probabilities])
def test_one_value_that_is_no_number_in_one_slice_is_found(predict, tiny_run):
    network, _ = trained_model(tiny_run, read_config(tiny_run))
    image = np.zeros((5, 4, 24, 20), np.float16)
    image[3, 0, 2, 2] = np.inf
    target = ("labels",) if predict is predict_labels else ()
    with pytest.raises(NotFiniteError, match="NaN"):
        predict(network, image, *target, batch_size=2)
    assert np.isfinite(predict(network, image[:3], *target, batch_size=2)).all()
