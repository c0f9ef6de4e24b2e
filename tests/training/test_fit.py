import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data import Slice
from training.fit import cosine_learning_rate, count_overlap, fit, overlap_dice
from training.models.logits import SCALE_RATIOS, Logits


class OnePixel(nn.Module):
    """The smallest network with six scales: one number a class, times the T1 image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, image):
        planes = image[:, :1] * self.scale.view(1, 3, 1, 1)
        return Logits(planes, (planes,) * len(SCALE_RATIOS))


def slices(count, value=1.0):
    label = torch.zeros(32, 32, dtype=torch.uint8)
    label[:16] = 2
    image = torch.full((4, 32, 32), value, dtype=torch.float16)
    return DataLoader([Slice(image, label)] * count, batch_size=2)


def config(**settings):
    plain = {"crop": 32, "rotation_deg": 0.0, "noise_std": 0.0, "weights": "none"}
    return TrainConfig(**{**plain, **settings})


def run(model, settings, *, loader=None, first_epoch=0, on_step=lambda _: None):
    return fit(
        model,
        loader or slices(5),
        settings,
        first_epoch=first_epoch,
        generator=torch.Generator().manual_seed(0),
        on_step=on_step,
    )


def test_the_learning_rate_falls_along_one_cosine():
    assert cosine_learning_rate(2.0, 0.0) == 2.0
    assert cosine_learning_rate(2.0, 0.5) == pytest.approx(1.0)
    assert cosine_learning_rate(2.0, 1 / 3) == pytest.approx(1.5)
    assert cosine_learning_rate(2.0, 1.0) == pytest.approx(0.0)


def test_every_epoch_sees_every_batch():
    seen = []
    result = run(OnePixel(), config(local_epochs=3), on_step=seen.append)
    assert result.num_steps == len(seen) == 3 * 3  # five slices are three batches
    assert result.loss == pytest.approx(sum(seen) / 9)
    assert result.fault is None


def test_the_decay_goes_on_from_round_to_round(monkeypatch):
    rates = []
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"])
    )
    settings = config(rounds=2, local_epochs=1, learning_rate=1.0)
    run(OnePixel(), settings)
    run(OnePixel(), settings, first_epoch=1)
    expected = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert rates == pytest.approx(expected)


def test_training_changes_the_weights_towards_the_truth():
    model = OnePixel()
    run(model, config(local_epochs=2, learning_rate=0.1))
    nec, ed, et = model.scale.tolist()
    assert nec < 0 and et < 0  # nowhere in the truth  # noqa: PT018
    assert ed > nec


def test_a_loss_that_is_not_finite_stops_training_and_is_named():
    loader = slices(3, value=float("nan"))
    model = OnePixel()
    result = run(model, config(), loader=loader, first_epoch=4)
    assert result.fault == "loss is nan at epoch 5, step 1"
    assert result.loss is None
    assert model.scale.tolist() == [0.0, 0.0, 0.0]


def test_overlap_counts_voxels_of_truth_prediction_and_both():
    truth = torch.tensor([[4, 4, 1, 2, 0]], dtype=torch.uint8)
    prediction = torch.tensor([[4, 2, 1, 2, 2]], dtype=torch.uint8)
    counts = count_overlap(truth, prediction)
    assert counts.tolist() == [[2, 3, 4], [1, 2, 5], [1, 2, 4]]  # ET, TC, WT
    assert overlap_dice(counts) == {"ET": 2 / 3, "TC": 4 / 5, "WT": 8 / 9}


def test_a_region_that_is_nowhere_scores_one():
    assert overlap_dice(torch.zeros(3, 3, dtype=torch.int64)) == {"ET": 1.0, "TC": 1.0, "WT": 1.0}
