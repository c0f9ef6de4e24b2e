"""The real network, loss and optimiser learn eight slices by heart."""

from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_schema.manifest import write_manifest
from pipeline.assemble import assemble_manifest
from pipeline.phantom.archives import write_phantom
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.config import TrainConfig
from training.data.slices import Slice, SliceDataset
from training.fit import FitResult, Stint, count_overlap, fit, make_optimizer
from training.models.initial import initial_model
from training.targets import decode_prediction

NUM_STEPS = 150
"""What they may take."""

SIDE = 32
"""Of slices, in pixels."""


@pytest.fixture
def eight_slices(tmp_path, small_options) -> Slice:
    """Of two people, those with all three labels and the most tumour."""
    write_phantom(tmp_path / "data", num_patients=2, shape=(SIDE, SIDE, 30))
    options = small_options.model_copy(update={"clients": 1, "test_fraction": 0.0})
    plan, cache = make_plan([tmp_path / "data"], options), Path(tmp_path / "cache")
    outcomes = [make_shard(s, cache, plan.preprocessing, lambda _: None) for s in plan.shards]
    write_manifest(cache, assemble_manifest(plan, outcomes))
    dataset = SliceDataset(cache, slices="tumour")
    slices = [dataset[index] for index in range(len(dataset))]
    slices.sort(key=lambda s: (len(np.unique(s.label)), int((s.label > 0).sum())), reverse=True)
    chosen = slices[:8]
    return Slice(torch.stack([s.image for s in chosen]), torch.stack([s.label for s in chosen]))


def test_eight_slices_are_learnt_to_a_dice_of_95_percent(eight_slices):
    config = TrainConfig(weights="none", crop=SIDE, rotation_deg=0.0, noise_std=0.0, device="cpu")
    config = config.model_copy(update={"learning_rate": 2e-3})
    model = initial_model(config)
    optimizer = make_optimizer(model, config)
    stint = Stint((1,), 0, NUM_STEPS, 0.0, 1 / NUM_STEPS)
    result = fit(
        model, optimizer, repeat(eight_slices), config, stint=stint, on_step=lambda _: None
    )
    assert result.num_steps == NUM_STEPS
    model.eval()
    with torch.inference_mode():
        logits = model(eight_slices.image.float()).final
    overlap = count_overlap(eight_slices.label, decode_prediction(logits.sigmoid(), "labels"))
    dice = FitResult(overlap=tuple(map(tuple, overlap.tolist()))).dice
    assert min(dice.values()) >= 0.95, dice
