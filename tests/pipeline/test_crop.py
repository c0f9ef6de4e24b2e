"""The box around what is not empty."""

import numpy as np
import pytest

from pipeline.crop import crop, place


def volume() -> np.ndarray:
    """Axes (k, j, i); two voxels at opposite corners of a box, an empty plane between them."""
    axial = np.zeros((6, 5, 7), np.int16)
    axial[1, 2, 6] = -3
    axial[3, 1, 4] = 8
    return axial


def test_the_box_is_the_smallest():
    cut = crop(volume())
    assert cut.corner == (1, 1, 4)
    assert cut.voxels.tolist() == [
        [[0, 0, 0], [0, 0, -3]],
        [[0, 0, 0], [0, 0, 0]],
        [[8, 0, 0], [0, 0, 0]],
    ]
    assert cut.voxels.flags.c_contiguous
    assert cut.planes.tolist() == [False, True, False, True, False, False]


def test_nothing_is_left_of_an_empty_volume():
    cut = crop(np.zeros((6, 5, 7), np.uint8))
    assert cut.voxels.size == 0
    assert not cut.planes.any()
    target = np.zeros((7, 5), np.uint8)
    place(target, cut, 3, np.asarray)
    assert not target.any()


@pytest.mark.parametrize(
    ("k", "lit"), [(0, {}), (1, {(6, 2): -6}), (2, {}), (3, {(4, 1): 16}), (5, {})]
)
def test_a_plane_is_placed_with_axes_i_j_and_converted(k, lit):
    target = np.zeros((8, 6), np.float16)
    place(target, crop(volume()), k, lambda plane: plane * 2.0)
    expected = np.zeros((8, 6))
    for voxel, value in lit.items():
        expected[voxel] = value
    np.testing.assert_array_equal(target, expected)
