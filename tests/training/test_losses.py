"""The loss by hand, against MONAI's, and under autocast."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close

from training.losses import deep_supervision_loss, segmentation_loss
from training.models.logits import SCALE_RATIOS, Logits

LN2 = math.log(2)


def logit(probability):
    return math.log(probability / (1 - probability))


def same_everywhere(value, batch=1, classes=1, height=2, width=3):
    return torch.full((batch, classes, height, width), float(value))


def test_cross_entropy_and_dice_by_hand():
    probability = torch.tensor([[[[0.75, 0.25]]]])
    target = torch.tensor([[[[1.0, 0.0]]]])
    # BCE: -ln 0.75 twice, averaged. Dice: 2 * 0.75 / (1 + 1), so 1 - 0.75.
    expected = -math.log(0.75) + 0.25
    loss = segmentation_loss(probability.logit(), target)
    assert_close(loss.item(), expected, atol=1e-5, rtol=0)


def test_dice_sums_over_the_batch_and_averages_over_the_classes():
    logits = torch.zeros(2, 2, 1, 4)  # probability one half everywhere, BCE ln 2
    target = torch.zeros(2, 2, 1, 4)
    target[0, 0] = 1.0
    # class 0: 2 * 2 / (4 + 4) = 0.5; class 1 has no truth: 0. Per sample it would be (2/3 + 0) / 2.
    expected = LN2 + 1 - (0.5 + 0.0) / 2
    assert_close(segmentation_loss(logits, target).item(), expected, atol=1e-5, rtol=0)


def test_an_absent_class_that_is_not_predicted_costs_nothing():
    loss = segmentation_loss(same_everywhere(-60), same_everywhere(0))
    assert_close(loss.item(), 0.0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrong", range(7))
def test_each_output_counts_with_its_own_weight(wrong):
    target = same_everywhere(1)
    right = same_everywhere(60)
    outputs = [right] * 7
    outputs[wrong] = same_everywhere(logit(0.25))
    # BCE -ln 0.25 = 2 ln 2; Dice 2 * 0.25 / (0.25 + 1) = 0.4
    weight = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1][wrong]
    loss = deep_supervision_loss(
        Logits(final=outputs[6], scales=tuple(outputs[:6]), ratios=SCALE_RATIOS), target
    )
    assert_close(loss.item(), weight * (2 * LN2 + 0.6), atol=1e-5, rtol=0)


def test_scale_weights_are_the_heights_of_the_decoder_outputs_over_the_image():
    assert [224 * ratio for ratio in SCALE_RATIOS] == [7, 14, 28, 56, 112, 224]


def random_logits(seed=0, batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(7, batch, 3, 8, 5, generator=generator).mul(3).to(dtype)
    target = (torch.rand(batch, 3, 8, 5, generator=generator) > 0.7).float()
    return Logits(final=outputs[6], scales=outputs[:6].unbind(), ratios=SCALE_RATIOS), target


def test_the_dice_part_is_monais():
    losses = pytest.importorskip("monai.losses")
    oracle = losses.DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    logits, target = random_logits()
    bce = functional.binary_cross_entropy_with_logits(logits.final, target)
    expected = bce + oracle(logits.final, target)
    assert_close(segmentation_loss(logits.final, target), expected)


def test_the_loss_is_float32_under_autocast_and_equals_that_of_the_same_logits_in_float32():
    rounded, target = random_logits(dtype=torch.bfloat16)
    exact = Logits(
        rounded.final.float(), tuple(scale.float() for scale in rounded.scales), SCALE_RATIOS
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = deep_supervision_loss(rounded, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, deep_supervision_loss(exact, target))


def test_gradients_are_finite_when_no_slice_holds_tumour():
    outputs = torch.randn(7, 2, 3, 8, 8, requires_grad=True)
    logits = Logits(final=outputs[6], scales=outputs[:6].unbind(), ratios=SCALE_RATIOS)
    deep_supervision_loss(logits, torch.zeros(2, 3, 8, 8)).backward()
    assert outputs.grad.isfinite().all()
    assert outputs.grad.any()


def test_gradients_are_finite_where_the_sigmoid_saturates():
    outputs = torch.full((1, 3, 4, 4), -200.0, requires_grad=True)
    segmentation_loss(outputs, torch.zeros(1, 3, 4, 4)).backward()
    assert outputs.grad.isfinite().all()


def test_volumes_have_a_loss_as_planes_do():
    volume = torch.randn(2, 3, 4, 5, 6)
    target = (torch.rand(2, 3, 4, 5, 6) > 0.5).float()
    flat = segmentation_loss(volume.flatten(3), target.flatten(3))
    assert_close(segmentation_loss(volume, target), flat)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(2, 5))
def test_the_loss_does_not_depend_on_the_order_of_the_batch(seed, batch):
    logits, target = random_logits(seed, batch)
    turned = Logits(
        logits.final.flip(0), tuple(scale.flip(0) for scale in logits.scales), SCALE_RATIOS
    )
    loss, again = (
        deep_supervision_loss(logits, target),
        deep_supervision_loss(turned, target.flip(0)),
    )
    assert_close(loss, again, atol=1e-5, rtol=1e-5)
