"""A network of three dimensions through the whole chain: trained, resumed, scored, used."""

import shutil

import numpy as np
import pytest
import torch

from cache_schema.manifest import read_manifest
from training.central import run_central
from training.checkpoint import load_weights
from training.config import CENTRAL, read_config
from training.data import VolumeDataset
from training.evaluate import evaluate
from training.export import FORMATS, describe_network, export_run
from training.federated.engine import run_federation
from training.models.size import count_parameters
from training.models.trained import network_size, trained_model
from training.predict import predict_labels
from training.predictor import open_predictor
from training.runlog import Silent, read_rounds

PATCH = (16, 32, 32)


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


class KillIn(Silent):
    """Ends everything in the first step of a round."""

    def __init__(self, number):
        self.number = number

    def step(self, *, round_number, client, loss):
        if round_number == self.number:
            raise KilledError


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.model_copy(
        update={"model": "tiny3d", "depth": 16, "batch_size": 2, "rounds": 3}
    )


@pytest.fixture(scope="module")
def run(small_cache, config, tmp_path_factory):
    path = tmp_path_factory.mktemp("volumes") / "run"
    run_federation(config, small_cache, path, Silent())
    return path


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_clients_count_by_cases_and_learn(run, small_cache):
    manifest = read_manifest(small_cache)
    training = [case.client for case in manifest.cases if case.split == "train"]
    rounds = read_rounds(run)
    assert [part.num_examples for part in rounds[0].clients] == [training.count(k) for k in (0, 1)]
    assert rounds[-1].loss < rounds[0].loss


def test_a_killed_federation_ends_with_the_same_bits(run, small_cache, config, tmp_path):
    with pytest.raises(KilledError):
        run_federation(config, small_cache, tmp_path / "run", KillIn(2))
    run_federation(config, small_cache, tmp_path / "run", Silent(), resume=True)
    assert same(load_weights(tmp_path / "run")[0], load_weights(run)[0])


def test_reading_in_other_processes_changes_no_bit(run, small_cache, config, tmp_path):
    elsewhere = config.model_copy(update={"loader_workers": 2})
    run_federation(elsewhere, small_cache, tmp_path / "run", Silent())
    assert same(load_weights(tmp_path / "run")[0], load_weights(run)[0])


def test_central_training_goes_on_within_an_epoch_with_the_same_bits(small_cache, config, tmp_path):
    class KillAt(Silent):
        steps = 0

        def step(self, **_):
            self.steps += 1
            if self.steps == 5:
                raise KilledError

    config = config.model_copy(update={"strategy": CENTRAL, "rounds": 2, "checkpoint_steps": 2})
    run_central(config, small_cache, tmp_path / "whole", Silent())
    with pytest.raises(KilledError):
        run_central(config, small_cache, tmp_path / "killed", KillAt())
    run_central(config, small_cache, tmp_path / "killed", Silent(), resume=True)
    whole, killed = (load_weights(tmp_path / name)[0] for name in ("whole", "killed"))
    assert same(whole, killed)


def test_test_cases_are_scored_from_windows_of_the_whole_volume(run, small_cache, config):
    model, _ = trained_model(run, config)
    volume = VolumeDataset(small_cache, split="test")[0]
    labels = predict_labels(model, volume.image, config.target, batch_size=2, patch=PATCH)
    assert labels.shape == volume.label.shape
    truth, found = volume.label == 4, labels == 4
    dice = (
        2
        * np.count_nonzero(truth & found)
        / max(np.count_nonzero(truth) + np.count_nonzero(found), 1)
    )
    score = evaluate(run, small_cache, on_case=lambda *_: None).scores[0]
    assert score.case_id == volume.case_id
    assert score.values["dice"]["ET"] == (dice if truth.any() or found.any() else 1.0)


def test_a_run_predicts_without_its_cache_what_it_was_scored_for(
    run, small_cache, config, tmp_path
):
    alone = shutil.copytree(run, tmp_path / "run")
    volume = VolumeDataset(small_cache, split="test")[0]
    model, _ = trained_model(run, config)
    expected = predict_labels(model, volume.image, config.target, batch_size=2, patch=PATCH)
    predictor = open_predictor(alone, device="cpu", keeps_probabilities=True)
    labels, probability = predictor(volume.image)
    np.testing.assert_array_equal(labels, expected)
    assert probability.shape == (len(volume.z), 3, *volume.image.shape[2:])


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_a_volume_turned_along_any_axis_is_segmented_alike_with_flips(
    axis, run, small_cache, config
):
    model, _ = trained_model(run, config)
    image = VolumeDataset(small_cache, split="test")[0].image
    turned = np.ascontiguousarray(np.flip(image, axis))
    settings = {"batch_size": 2, "patch": PATCH, "tta": True}
    expected, found = (
        predict_labels(model, each, config.target, **settings) for each in (image, turned)
    )
    back = np.flip(found, axis - (axis > 1))
    assert expected.any()
    assert np.mean(back != expected) < 0.002  # sums in another order


def test_a_patch_is_what_flops_are_counted_of(run, config):
    model, _ = trained_model(run, config)
    num_voxels = 16 * 32 * 32
    assert network_size(run) == (count_parameters(model), 2 * num_voxels * (27 * 4 * 6 + 6 * 3))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_network_of_volumes_is_exported_for_its_patch(suffix, run, tmp_path):
    out = tmp_path / f"model{suffix}"
    assert export_run(run, out) < 1e-5
    exported = FORMATS[suffix].load(out)
    assert exported(np.zeros((1, 4, *PATCH), np.float32)).shape == (1, 3, *PATCH)
    metadata = describe_network(run, read_config(run), 3)
    assert metadata["input"].startswith("image: (1, 4, depth, height, width) float32")
    assert metadata["output"].startswith("probability: (1, 3, depth, height, width) float32")
    assert "one patch of 16 x 32 x 32 voxels" in metadata["input"]
