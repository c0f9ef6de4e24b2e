"""Label maps to planes and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.targets import PLANES, decode_prediction, encode_target

LABEL = torch.tensor([[[0, 1, 2], [4, 2, 0]]], dtype=torch.uint8)


def probabilities(*planes):
    """One pixel a column: the three planes' probabilities."""
    return torch.tensor(planes).view(1, 3, 1, -1)


def test_labels_are_nec_ed_et():
    planes = encode_target(LABEL, "labels")
    assert planes.dtype == torch.float32
    assert planes[0].tolist() == [
        [[0, 1, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 1, 0]],
        [[0, 0, 0], [1, 0, 0]],
    ]
    assert list(PLANES["labels"]) == ["NEC", "ED", "ET"]


def test_regions_are_et_tc_wt_each_inside_the_next():
    assert encode_target(LABEL, "regions")[0].tolist() == [
        [[0, 0, 0], [1, 0, 0]],
        [[0, 1, 0], [1, 0, 0]],
        [[0, 1, 1], [1, 1, 0]],
    ]
    assert list(PLANES["regions"]) == ["ET", "TC", "WT"]


def test_the_most_probable_label_wins_if_it_is_above_one_half():
    nec, ed, et = [0.9, 0.6, 0.4, 0.5, 0.1], [0.8, 0.7, 0.3, 0.5, 0.2], [0.1, 0.8, 0.2, 0.1, 0.51]
    label = decode_prediction(probabilities(nec, ed, et), "labels")
    assert label.dtype == torch.uint8
    assert label.flatten().tolist() == [1, 4, 0, 0, 4]


def test_labels_leave_a_hole_where_they_share_the_probability_and_regions_do_not():
    labels, regions = probabilities([0.05], [0.45], [0.45]), probabilities([0.45], [0.5], [0.95])
    assert decode_prediction(labels, "labels").item() == 0
    assert decode_prediction(regions, "regions").item() == 2


def test_a_region_counts_only_inside_the_region_around_it():
    et, tc, wt = (
        [0.9, 0.9, 0.9, 0.1, 0.1, 0.9],
        [0.9, 0.1, 0.9, 0.9, 0.1, 0.9],
        [0.9, 0.9, 0.1, 0.9, 0.9, 0.5],
    )
    label = decode_prediction(probabilities(et, tc, wt), "regions")
    assert label.dtype == torch.uint8
    assert label.flatten().tolist() == [4, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("target", ["labels", "regions"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(2, 3, 5), (1, 2, 3, 4)]))
def test_decoding_undoes_encoding_for_planes_and_volumes(target, seed, shape):
    index = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))
    label = torch.tensor([0, 1, 2, 4], dtype=torch.uint8)[index]
    planes = encode_target(label, target)
    assert planes.shape == (shape[0], 3, *shape[1:])
    assert torch.equal(decode_prediction(planes, target), label)
