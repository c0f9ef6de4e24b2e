"""Every network of three dimensions, made tiny, goes through the chain from shards to scores."""

import math

import numpy as np
import pytest
import torch

from cache_schema.vocabulary import REGIONS
from training.checkpoint import load_weights
from training.config import make_config
from training.data import VolumeDataset
from training.evaluate import evaluate
from training.federated.engine import run_federation
from training.models.initial import initial_model
from training.models.registry import MODELS
from training.predict import predict_labels
from training.predictor import open_predictor
from training.runlog import Silent, read_rounds

OURS = sorted(name for name, network in MODELS.items() if network.is_3d and network.tiny)


def test_the_networks_of_the_paper_are_all_there():
    assert set(MODELS) >= {
        *("unetmm", "unet3d", "resunet3d", "transbts", "unetr", "swinunetr", "unetrpp", "nnformer")
    }


@pytest.mark.parametrize("name", OURS)
def test_a_tiny_one_trains_three_federated_rounds_and_is_scored(name, small_cache, tmp_path):
    torch.set_num_threads(1)
    config = make_config(
        model=name,
        model_options={"size": "tiny"},
        weights="none",
        crop=32,
        batch_size=2,
        rounds=3,
        local_steps=1,
        learning_rate=1e-3,
        loader_workers=0,
        device="cpu",
    )
    run_federation(config, small_cache, tmp_path / "run", Silent())
    assert [record.round for record in read_rounds(tmp_path / "run")] == [1, 2, 3]
    before = initial_model(config).state_dict()
    after, _ = load_weights(tmp_path / "run")
    moved = [key for key, tensor in after.items() if not torch.equal(tensor, before[key])]
    trainable = [key for key, _ in initial_model(config).named_parameters()]
    assert set(trainable) <= set(moved)
    result = evaluate(tmp_path / "run", small_cache, on_case=lambda *_: None)
    values = [score.values["dice"][region] for score in result.scores for region in REGIONS]
    assert all(0 <= value <= 1 and math.isfinite(value) for value in values)
    volume = VolumeDataset(small_cache, split="test")[0]
    labels, _ = open_predictor(tmp_path / "run", device="cpu")(volume.image)
    model = initial_model(config)
    model.load_state_dict(after)
    expected = predict_labels(model, volume.image, "labels", batch_size=1, patch=(32, 32, 32))
    np.testing.assert_array_equal(labels, expected)
