"""Sinusoids against the formula written with loops."""

import math

import pytest
import torch
from torch.testing import assert_close

from training.models.unetmm.position import PositionEmbedding, grid_sinusoid, sinusoid

CPU = torch.device("cpu")


def sinusoid_by_loops(length, channels):
    table = torch.zeros(length, channels, dtype=torch.float64)
    for place in range(length):
        for channel in range(channels):
            angle = place / 10000 ** (2 * (channel // 2) / channels)
            table[place, channel] = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    return table


@pytest.mark.parametrize(("length", "channels"), [(7, 256), (28, 22), (1, 2)])
def test_a_sinusoid_follows_the_formula(length, channels):
    expected = sinusoid_by_loops(length, channels)
    assert_close(sinusoid(length, channels, CPU).double(), expected, atol=1e-5, rtol=0)


def test_a_plane_gives_half_of_its_channels_to_rows_and_half_to_columns():
    embedding = grid_sinusoid((3, 5), 64, CPU).double()
    rows, columns = sinusoid_by_loops(3, 32), sinusoid_by_loops(5, 32)
    for row in range(3):
        for column in range(5):
            expected = torch.cat((rows[row], columns[column]))
            assert_close(embedding[row, column], expected, atol=1e-5, rtol=0)


def test_64_channels_over_three_axes_are_22_and_22_and_20():
    embedding = grid_sinusoid((4, 3, 5), 64, CPU).double()
    assert embedding.shape == (4, 3, 5, 64)
    axes = [sinusoid_by_loops(length, 22) for length in (4, 3, 5)]
    for place in [(0, 0, 0), (3, 1, 4), (2, 2, 2), (1, 0, 3)]:
        parts = [axis[index] for axis, index in zip(axes, place, strict=True)]
        assert_close(embedding[place], torch.cat(parts)[:64], atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [64, 128, 256, 512])
@pytest.mark.parametrize("kind", ["none", "2d", "3d", "2d+3d"])
def test_the_shape_stays(kind, channels):
    features = torch.randn(2, 4, channels, 3, 5)
    assert PositionEmbedding(kind)(features).shape == features.shape


def test_none_adds_nothing():
    features = torch.randn(2, 4, 64, 3, 5)
    assert torch.equal(PositionEmbedding("none")(features), features)


def test_2d_is_the_same_for_all_modalities():
    added = PositionEmbedding("2d")(torch.zeros(2, 4, 64, 3, 5))
    for modality in range(1, 4):
        assert torch.equal(added[:, modality], added[:, 0])
    assert_close(added[1, 0], grid_sinusoid((3, 5), 64, CPU).permute(2, 0, 1))


def test_3d_differs_between_any_two_modalities():
    added = PositionEmbedding("3d")(torch.zeros(1, 4, 64, 3, 5))
    for first in range(4):
        for second in range(first):
            assert not torch.equal(added[:, first], added[:, second])
    assert_close(added[0], grid_sinusoid((4, 3, 5), 64, CPU).permute(0, 3, 1, 2))


def test_2d_and_3d_together_are_their_sum():
    zeros = torch.zeros(2, 4, 64, 3, 5)
    both = PositionEmbedding("2d+3d")(zeros)
    assert_close(both, PositionEmbedding("2d")(zeros) + PositionEmbedding("3d")(zeros))


def test_half_precision_features_stay_half_precision():
    features = torch.zeros(1, 4, 64, 2, 2, dtype=torch.bfloat16)
    assert PositionEmbedding("2d+3d")(features).dtype == torch.bfloat16
