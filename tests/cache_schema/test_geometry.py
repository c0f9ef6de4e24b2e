"""Where voxels lie, by the affine and not by what BraTS has."""

import itertools

import numpy as np
import pytest

from cache_schema.geometry import (
    pixel_aspect,
    radiological,
    restore_volume,
    spacing_mm,
    world_axes,
)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PLANE = np.array([[1, 2], [3, 4], [5, 6]])


def turned(degrees):
    """LPS axes after a turn of the head about the body's axis."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine @ LPS


def test_slices_go_back_to_their_places_and_padding_is_cut_off():
    label = np.zeros((3, 4, 6), np.uint8)
    label[0, 2, 4], label[2, 0, 1], label[1, 3, 5] = 1, 4, 2  # the last one lies in the padding
    whole = restore_volume(label, np.array([1, 2, 5]), (3, 5, 7))
    assert whole.shape == (3, 5, 7)
    assert np.argwhere(whole).tolist() == [[0, 1, 5], [2, 4, 1]]
    assert (whole[2, 4, 1], whole[0, 1, 5]) == (1, 4)


def test_several_planes_become_the_last_axis():
    labels = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    planes = np.stack([labels, labels + 1, labels + 2], axis=1)
    four = restore_volume(planes, np.array([1, 3]), (3, 4, 5))
    assert four.shape == (3, 4, 5, 3)
    np.testing.assert_array_equal(four[:, :, 3, 2], planes[1, 2, :3, :4])


def test_spacing_follows_the_axes_of_the_volume_whatever_their_directions():
    assert spacing_mm(np.diag([-1.0, -2.0, 5.0, 1.0])) == (1.0, 2.0, 5.0)
    other = np.array([[0, 3.0, 0, 9], [4.0, 0, 0, 8], [0, 0, -5.0, 7], [0, 0, 0, 1]])
    assert spacing_mm(other) == (4.0, 3.0, 5.0)


def test_one_axis_is_turned_without_the_other():
    assert radiological(PLANE, LPS).tolist() == [[1, 3, 5], [2, 4, 6]]
    assert radiological(PLANE, np.diag([1.0, -1, 1, 1])).tolist() == [[5, 3, 1], [6, 4, 2]]
    assert radiological(PLANE, np.diag([-1.0, 1, 1, 1])).tolist() == [[2, 4, 6], [1, 3, 5]]


@pytest.mark.parametrize(
    ("exchanged", "signs"),
    list(itertools.product((False, True), itertools.product((1, -1), repeat=2))),
)
def test_a_head_looks_the_same_however_its_plane_is_stored(exchanged, signs):
    plane, affine = PLANE[:: signs[0], :: signs[1]], LPS @ np.diag([*signs, 1.0, 1.0])
    if exchanged:
        plane, affine = plane.T, affine[:, [1, 0, 2, 3]]
    assert radiological(plane, affine).tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize("degrees", range(-170, 181, 20))
def test_of_an_oblique_plane_counts_where_an_axis_runs_most(degrees):
    """The corner nearest to front right of the patient is shown at the upper left."""
    plane = np.array([[0, 1], [2, 3]])
    affine = turned(degrees)
    places = {
        int(plane[i, j]): affine @ (2 * i - 1, 2 * j - 1, 0, 0) for i in (0, 1) for j in (0, 1)
    }
    # To the patient's right and front, each by its sign, is the upper left quarter.
    front_right = max(places, key=lambda corner: places[corner][0] + places[corner][1])
    shown = radiological(plane, affine)
    assert shown[0, 0] == front_right
    left_of_it = max(places, key=lambda corner: places[corner][1] - places[corner][0])
    assert shown[0, 1] == left_of_it


def test_sagittal_and_coronal_planes_have_the_top_up():
    sagittal = np.array([[0, 0, 1.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    assert world_axes(sagittal) == (1, 2, 0)
    assert radiological(PLANE, sagittal).tolist() == [[6, 4, 2], [5, 3, 1]]  # i to front, j to top
    coronal = np.array([[0, -1.0, 0, 0], [0, 0, 1.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    assert world_axes(coronal) == (2, 0, 1)
    assert radiological(PLANE, coronal).tolist() == [[5, 6], [3, 4], [1, 2]]


def test_no_two_axes_are_taken_for_one_and_long_voxels_do_not_count_more():
    sheared = np.array([[3.0, 9.0, 0, 0], [2.0, 8.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    assert world_axes(sheared) == (0, 1, 2)
    assert sorted(world_axes(np.zeros((4, 4)))) == [0, 1, 2]


def test_the_aspect_is_that_of_the_plane_as_it_is_shown():
    assert pixel_aspect(np.diag([-2.0, -3.0, 1.0, 1.0])) == 1.5
    exchanged = np.array([[0, 3.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    assert pixel_aspect(exchanged) == 2 / 3  # i, of 2 mm, runs to the front and is the height
