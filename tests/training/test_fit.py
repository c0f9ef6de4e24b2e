import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data.slices import Slice
from training.fit import (
    FitResult,
    Stint,
    cosine_learning_rate,
    count_overlap,
    fit,
    make_optimizer,
)
from training.models.logits import SCALE_RATIOS, Logits


class OnePixel(nn.Module):
    """The smallest network with six scales: one number a class, times the T1 image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, image):
        planes = image[:, :1] * self.scale.view(1, 3, 1, 1)
        return Logits(planes, (planes,) * len(SCALE_RATIOS), SCALE_RATIOS)


def slices(count, value=1.0):
    label = torch.zeros(32, 32, dtype=torch.uint8)
    label[:16] = 2
    image = torch.full((4, 32, 32), value, dtype=torch.float16)
    return DataLoader([Slice(image, label)] * count, batch_size=2)


def config(**settings):
    plain = {"crop": 32, "rotation_deg": 0.0, "noise_std": 0.0, "weights": "none"}
    return TrainConfig(**{**plain, **settings})


def run(model, settings, *, loader=None, start=0, stop=3, progress=0.0, on_step=lambda _: None):
    loader = loader or slices(5)
    return fit(
        model,
        make_optimizer(model, settings),
        iter([batch for _ in range(9) for batch in loader]),
        settings,
        stint=Stint((1, 2), start, stop, progress, 1 / 12),
        on_step=on_step,
    )


def test_the_learning_rate_falls_along_one_cosine():
    assert cosine_learning_rate(2.0, 0.0) == 2.0
    assert cosine_learning_rate(2.0, 0.5) == pytest.approx(1.0)
    assert cosine_learning_rate(2.0, 1 / 3) == pytest.approx(1.5)
    assert cosine_learning_rate(2.0, 1.0) == pytest.approx(0.0)


def test_a_stint_has_as_many_steps_as_it_says():
    seen = []
    result = run(OnePixel(), config(), start=2, stop=9, on_step=seen.append)
    assert result.num_steps == len(seen) == 7
    assert result.loss == pytest.approx(sum(seen) / 7)
    assert result.fault is None


def test_just_as_many_batches_are_taken_as_there_are_steps():
    for value in (1.0, float("nan")):  # a fault does not leave batches to the next client
        batches = iter(list(slices(2 * 9, value=value)))
        stint = Stint((1,), 0, 5, 0.0, 0.1)
        model = OnePixel()
        optimizer = make_optimizer(model, config())
        fit(model, optimizer, batches, config(), stint=stint, on_step=lambda _: None)
        assert len(list(batches)) == 4


def test_the_decay_goes_on_from_stint_to_stint(monkeypatch):
    rates = []
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"])
    )
    settings = config(learning_rate=1.0)
    run(OnePixel(), settings, progress=0.25)
    run(OnePixel(), settings, start=3, stop=6, progress=0.25)
    expected = [(1 + math.cos(math.pi * (0.25 + step / 12))) / 2 for step in range(6)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_without_a_cosine_the_rate_is_the_share_that_is_left(schedule, monkeypatch):
    rates = []
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"])
    )
    settings, model = config(learning_rate=0.5, lr_schedule=schedule), OnePixel()
    stint = Stint((1,), 0, 3, progress=0.5, progress_per_step=0.1, rate_factor=0.2)
    batches = iter(list(slices(6)))
    fit(model, make_optimizer(model, settings), batches, settings, stint=stint, on_step=id)
    assert rates == pytest.approx([0.1, 0.1, 0.1])


def test_training_changes_the_weights_towards_the_truth():
    model = OnePixel()
    run(model, config(learning_rate=0.1), stop=6)
    nec, ed, et = model.scale.tolist()
    assert nec < 0 and et < 0  # nowhere in the truth  # noqa: PT018
    assert ed > nec


def test_a_step_depends_on_its_number_and_not_on_the_steps_before():
    settings = config(rotation_deg=30.0, noise_std=0.5, learning_rate=1e-9)
    whole, parts = [], []
    run(OnePixel(), settings, loader=slices(6), stop=4, on_step=whole.append)
    torch.manual_seed(1)
    run(OnePixel(), settings, loader=slices(6), start=2, stop=4, on_step=parts.append)
    assert whole[2:] == pytest.approx(parts, rel=1e-6)
    assert whole[0] != pytest.approx(whole[1], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_training_and_is_named():
    loader = slices(3, value=float("nan"))
    model = OnePixel()
    result = run(model, config(), loader=loader, start=4, stop=9)
    assert result.fault == "loss is nan at step 5"
    assert result.loss is None
    assert model.scale.tolist() == [0.0, 0.0, 0.0]


def test_a_gradient_that_is_not_finite_stops_training_before_it_reaches_the_weights():
    model, losses = OnePixel(), []
    model.scale.register_hook(lambda gradient: gradient / 0.0)
    result = run(model, config(), start=4, stop=5, on_step=losses.append)
    assert result.fault == "gradient is not finite at step 5"
    assert losses == []
    assert model.scale.tolist() == [0.0, 0.0, 0.0]


def test_bfloat16_leaves_weights_and_loss_in_float32():
    model, losses = OnePixel(), []
    run(model, config(precision="bfloat16", learning_rate=0.1), on_step=losses.append)
    exact = []
    run(OnePixel(), config(precision="float32", learning_rate=0.1), on_step=exact.append)
    assert model.scale.dtype == torch.float32
    assert losses == pytest.approx(exact, rel=0.02)


def test_overlap_counts_voxels_of_truth_prediction_and_both():
    truth = torch.tensor([[4, 4, 1, 2, 0]], dtype=torch.uint8)
    prediction = torch.tensor([[4, 2, 1, 2, 2]], dtype=torch.uint8)
    counts = count_overlap(truth, prediction)
    assert counts.tolist() == [[2, 3, 4], [1, 2, 5], [1, 2, 4]]  # ET, TC, WT
    result = FitResult(overlap=tuple(map(tuple, counts.tolist())))
    assert result.dice == {"ET": 2 / 3, "TC": 4 / 5, "WT": 8 / 9}


def test_a_region_that_is_nowhere_scores_one():
    assert FitResult().dice == {"ET": 1.0, "TC": 1.0, "WT": 1.0}


def test_two_stints_add_up():
    first = FitResult(2, 3.0, ((1, 2, 3), (4, 5, 6), (1, 1, 1)))
    second = FitResult(1, 0.0, ((1, 0, 0), (0, 5, 0), (0, 1, 1)), "loss is nan at step 4")
    both = first + second
    assert both == FitResult(3, 3.0, ((2, 2, 3), (4, 10, 6), (1, 2, 2)), "loss is nan at step 4")
    assert both.loss == 1.0
    assert both.dice["TC"] == 2 * 2 / 12
