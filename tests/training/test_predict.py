import numpy as np
import pytest
import torch
from torch import nn

from training.models.logits import SCALE_RATIOS, Logits
from training.predict import drop_small_enhancing, predict_labels, predict_probabilities


class BrightIsOedema(nn.Module):
    """Calls a pixel oedema where FLAIR is above 1; notes the size of what it was shown."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.shapes = []

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        bright = (image[:, 3:] > 1).float() * 20 - 10
        planes = torch.cat((torch.full_like(bright, -10), bright, torch.full_like(bright, -10)), 1)
        return Logits(planes, (planes,) * len(SCALE_RATIOS), SCALE_RATIOS)


def test_slices_are_padded_for_the_network_and_come_back_at_their_own_size():
    image = np.random.default_rng(0).normal(size=(5, 4, 40, 33)).astype(np.float16)
    model = BrightIsOedema()
    label = predict_labels(model, image, "labels", batch_size=2)
    assert model.shapes == [(2, 4, 64, 64), (2, 4, 64, 64), (1, 4, 64, 64)]
    np.testing.assert_array_equal(label, np.where(image[:, 3] > 1, 2, 0))
    assert label.dtype == np.uint8
    assert not model.training


class LeansOnPlace(nn.Module):
    """Its planes are T1, and ramps that grow along rows and columns whatever the image shows."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, image):
        self.seen.append(image[..., :33, :40].clone())
        rows = torch.arange(image.shape[2]).float().div(10).reshape(1, 1, -1, 1)
        columns = torch.arange(image.shape[3]).float().div(10)
        plain = torch.zeros_like(image[:, :1])
        planes = torch.cat((image[:, :1], plain + rows, plain + columns), 1)
        return Logits(planes, (planes,) * len(SCALE_RATIOS), SCALE_RATIOS)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(5, 4, 33, 40)).astype(np.float16)


def test_probabilities_are_those_of_the_network_for_every_slice(image):
    found = predict_probabilities(LeansOnPlace(), image, batch_size=2)
    assert (found.shape, found.dtype) == ((5, 3, 33, 40), np.float32)
    np.testing.assert_allclose(found[:, 0], sigmoid(image[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(found[3, 1, :, 7], sigmoid(np.arange(33) / 10), rtol=1e-5)
    np.testing.assert_allclose(found[3, 2, 7], sigmoid(np.arange(40) / 10), rtol=1e-5)


def test_flips_are_flipped_back_before_probabilities_not_logits_are_averaged(image):
    model = LeansOnPlace()
    found = predict_probabilities(model, image, batch_size=5, tta=True)
    np.testing.assert_allclose(found[:, 0], sigmoid(image[:, 0]), rtol=1e-5)
    rows, columns = sigmoid(np.arange(33) / 10), sigmoid(np.arange(40) / 10)
    np.testing.assert_allclose(found[2, 1, :, 9], (rows + rows[::-1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found[2, 2, 9], (columns + columns[::-1]) / 2, rtol=1e-5)


def test_the_network_sees_every_flip_of_both_axes_in_the_plane(image):
    model = LeansOnPlace()
    predict_probabilities(model, image, batch_size=5, tta=True)
    slices = image.astype(np.float32)
    expected = [slices, slices[..., ::-1], slices[:, :, ::-1], slices[:, :, ::-1, ::-1]]
    assert len(model.seen) == 4
    for seen, flipped in zip(model.seen, expected, strict=True):
        np.testing.assert_array_equal(seen.numpy(), flipped)


def test_labels_are_those_of_the_averaged_probabilities(image):
    # The mean of a ramp and its mirror image is everywhere above one half, so ED and ET beat T1's NEC.
    model = LeansOnPlace()
    probability = predict_probabilities(model, image, batch_size=2, tta=True)
    label = predict_labels(model, image, "labels", batch_size=2, tta=True)
    winner = np.array([1, 2, 4])[probability.argmax(axis=1)]
    np.testing.assert_array_equal(label, np.where(probability.max(axis=1) > 0.5, winner, 0))
    assert not np.array_equal(label, predict_labels(model, image, "labels", batch_size=2))


def test_fewer_enhancing_voxels_than_asked_for_in_the_whole_case_become_necrosis():
    label = np.zeros((3, 4, 5), np.uint8)
    label[0, 0, :3], label[2, 1, :2], label[1, 2] = 4, 4, 2  # five enhancing voxels in two slices
    expected = np.where(label == 4, 1, label)
    np.testing.assert_array_equal(drop_small_enhancing(label, 6), expected)
    np.testing.assert_array_equal(drop_small_enhancing(label, 5), label)
    np.testing.assert_array_equal(drop_small_enhancing(label, 0), label)
    assert drop_small_enhancing(label, 6).dtype == np.uint8
    assert label[0, 0, 0] == 4


def test_the_rule_for_enhancing_tumour_counts_over_all_batches(image):
    model = LeansOnPlace()
    label = predict_labels(model, image, "labels", batch_size=2)
    count = int(np.count_nonzero(label == 4))
    assert count > np.count_nonzero(label[:2] == 4) > 0
    kept = predict_labels(model, image, "labels", batch_size=2, postprocess_et=count)
    np.testing.assert_array_equal(kept, label)
    dropped = predict_labels(model, image, "labels", batch_size=2, postprocess_et=count + 1)
    np.testing.assert_array_equal(dropped, np.where(label == 4, 1, label))
