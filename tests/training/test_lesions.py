"""Lesion-wise scores by hand: which parts are one lesion, who belongs to whom, and what does not count."""

import numpy as np
import pytest
from scipy import ndimage

from training.lesions import lesion_score, match_lesions
from training.surface import hd95_mm

MM = (1.0, 1.0, 1.0)
SHAPE = (13, 21, 41)
SMALL = 5  # a cube of 125 mm^3, which counts


def cube(x, side=SMALL, y=5, z=3):
    mask = np.zeros(SHAPE, bool)
    mask[z : z + side, y : y + side, x : x + side] = True
    return mask


NOTHING = np.zeros(SHAPE, bool)


def test_nothing_on_both_sides_is_perfect():
    assert lesion_score(NOTHING, NOTHING, MM) == (1.0, 0.0)


def test_a_perfect_prediction_is_perfect():
    both = cube(2) | cube(30)
    assert lesion_score(both, both, MM) == (1.0, 0.0)


def test_a_missed_lesion_costs_its_whole_share():
    assert lesion_score(cube(2) | cube(30), cube(2), MM) == (0.5, 374 / 2)
    assert lesion_score(cube(2), NOTHING, MM) == (0.0, 374.0)


def test_every_false_positive_counts_like_a_missed_lesion():
    prediction = cube(2) | cube(20, side=1) | cube(30, side=2)
    assert lesion_score(cube(2), prediction, MM) == (1 / 3, 2 * 374 / 3)
    assert lesion_score(NOTHING, cube(2), MM) == (0.0, 374.0)


def test_a_lesion_counts_once_whatever_its_size():
    # 125 voxels found, 27 + 1 x 27 missed: the volume's Dice would be near 0.9.
    truth, prediction = cube(2) | cube(20, side=4), cube(2)
    assert lesion_score(truth, prediction, MM).dice == 0.5


def test_lesions_of_at_most_50_cubic_millimetres_are_left_out():
    small = cube(30, side=1) | cube(31, side=1)  # two voxels
    edge = np.zeros(SHAPE, bool)
    edge[2:4, 5:10, 25:30] = True  # 2 x 5 x 5 = 50 voxels
    assert lesion_score(cube(2) | edge, cube(2), MM) == (1.0, 0.0)
    assert lesion_score(small, NOTHING, MM) == (1.0, 0.0)
    just_more = edge.copy()
    just_more[4, 5, 25] = True
    assert lesion_score(cube(2) | just_more, cube(2), MM).dice == 0.5


def test_what_meets_a_small_lesion_is_no_false_positive():
    small = cube(30, side=2)
    assert lesion_score(cube(2) | small, cube(2) | small, MM) == (1.0, 0.0)
    assert lesion_score(cube(2), cube(2) | small, MM).dice == 0.5


def test_volumes_are_in_millimetres():
    one = cube(30, side=3)  # 27 voxels
    assert lesion_score(one, NOTHING, MM) == (1.0, 0.0)
    assert lesion_score(one, NOTHING, (2.0, 1.0, 1.0)) == (0.0, 374.0)


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_parts_are_one_lesion_if_their_dilations_touch(gap, lesions):
    # Three steps from either side meet in a gap of six voxels, as neighbours.
    truth = cube(2) | cube(2 + SMALL + gap)
    score = lesion_score(truth, cube(2), MM)
    assert match_lesions(truth, NOTHING).lesions.max() == lesions
    assert score.dice == pytest.approx(2 * 125 / (250 + 125) if lesions == 1 else 1 / 2)


def test_dilations_spread_over_edges_but_not_over_corners():
    # Three steps of the 18 neighbours reach any sum of coordinates up to 6 with none above 3.
    reached, beyond = NOTHING.copy(), NOTHING.copy()
    for away, mask in ((2, reached), (3, beyond)):
        mask[7 + away, 9 + away, 6 + away] = True  # from the corner voxel (7, 9, 6) of the cube
    assert match_lesions(cube(2), reached).num_false_positives == 0
    assert match_lesions(cube(2), beyond).num_false_positives == 1


def test_a_prediction_within_three_steps_belongs_to_the_lesion():
    near, far = cube(2 + SMALL + 2), cube(2 + SMALL + 3)
    assert match_lesions(cube(2), near).num_false_positives == 0
    assert match_lesions(cube(2), far).num_false_positives == 1
    # Near, but without a common voxel: no Dice, a finite distance.
    score = lesion_score(cube(2), near, MM)
    assert score == (0.0, hd95_mm(cube(2), near, MM))
    assert score.hd95_mm == 7.0


def test_a_component_belongs_to_every_lesion_that_it_meets():
    truth = cube(2) | cube(16)
    bridge = truth.copy()
    bridge[5, 7, 2:21] = True
    match = match_lesions(truth, bridge)
    assert match.meets[1:, 1:].tolist() == [[True], [True]]
    bridged = np.count_nonzero(bridge)
    assert lesion_score(truth, bridge, MM).dice == pytest.approx(2 * 125 / (125 + bridged))


def test_a_lesion_is_compared_with_the_union_of_its_components():
    halves = cube(2).copy()
    halves[:, :, 4] = False  # one plane of 25 voxels is missing between two parts
    assert match_lesions(cube(2), halves).meets[1:, 1:].tolist() == [[True, True]]
    assert lesion_score(cube(2), halves, MM).dice == 2 * 100 / (125 + 100)


def test_corners_connect_components():
    stairs = NOTHING.copy()
    stairs[2, 2, 30] = stairs[3, 3, 31] = True
    assert match_lesions(cube(2), stairs).num_false_positives == 1


def test_where_lesions_lie_in_the_volume_does_not_matter():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.random(SHAPE) < 0.002
        prediction = rng.random(SHAPE) < 0.002
        padded = [np.pad(mask, 5) for mask in (truth, prediction)]
        spacing = (60.0, 1.0, 1.0)  # so that single voxels count
        assert lesion_score(truth, prediction, spacing) == pytest.approx(
            lesion_score(*padded, spacing)
        )


def brute_force(truth, prediction, spacing):
    """Follow the challenge's steps one by one, with a dilation for each lesion."""
    reach, near = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    joined, num_lesions = ndimage.label(ndimage.binary_dilation(truth, reach, iterations=3), near)
    components, num_components = ndimage.label(prediction, near)
    met, dice, hd95 = set(), [], []
    for number in range(1, num_lesions + 1):
        lesion = truth & (joined == number)
        around = ndimage.binary_dilation(lesion, reach, iterations=3)
        mine = set(np.unique(components[around])) - {0}
        met |= mine
        if lesion.sum() * np.prod(spacing) <= 50:
            continue
        union = np.isin(components, list(mine))
        dice.append(2 * (lesion & union).sum() / (lesion.sum() + union.sum()))
        hd95.append(hd95_mm(lesion, union, spacing) if mine else 374.0)
    false_positives = num_components - len(met)
    count = len(dice) + false_positives
    if count == 0:
        return 1.0, 0.0
    return sum(dice) / count, (sum(hd95) + 374 * false_positives) / count


def test_random_masks_score_as_step_by_step():
    rng = np.random.default_rng(1)
    for _ in range(30):
        blobs = ndimage.gaussian_filter(rng.normal(size=(2, 13, 25, 31)), (0, 1, 1, 1))
        truth, prediction = blobs > np.quantile(blobs, rng.uniform(0.9, 0.995))
        spacing = tuple(rng.choice([0.5, 1.0, 1.5, 2.0], 3))
        expected = brute_force(truth, prediction, spacing)
        assert lesion_score(truth, prediction, spacing) == pytest.approx(expected)


# Dice and HD95 in mm that the challenge's own code, github.com/rachitsaluja/BraTS-2023-Metrics at 43c90524,
# computed for the masks that `boxes_and_shifted_boxes` makes of a seed.
# Seeds that score 0 and 374, or 1 and 0, are left out.
BY_THE_CHALLENGE = {
    0: (0.45537998892083675, 125.33333333333333),
    2: (0.2639257294429708, 3.1622776601683795),
    3: (0.03937007874015748, 3.605551275463989),
    4: (0.1822459470146303, 96.64135047440031),
    5: (0.06153846153846154, 300.5416407864999),
    6: (0.22125813449023862, 3.605551275463989),
    7: (0.19757534862798018, 151.62462112512353),
    8: (0.13793103448275862, 250.38742588672278),
    9: (0.25766871165644173, 250.0),
    11: (0.35714285714285715, 3.0),
    12: (0.03417357656163626, 225.8422205101856),
    13: (0.6602836879432624, 4.020752582766183),
    15: (0.0630841121495327, 190.61634549643284),
    16: (0.12307692307692308, 250.07868932583327),
    17: (0.20935897435897433, 151.4),
    18: (0.2250448277648047, 141.8903882032022),
    19: (0.10416666666666667, 187.70710678118655),
    22: (0.0, 189.5495097567964),
    28: (0.07559523809523809, 235.02899131884627),
    33: (0.7562814070351759, 1.0),
}


def boxes(generator, count):
    mask = np.zeros((24, 32, 40), bool)
    for _ in range(count):
        start, side = generator.integers(0, mask.shape), generator.integers(1, 10, 3)
        mask[tuple(slice(a, a + s) for a, s in zip(start, side, strict=True))] = True
    return mask


def boxes_and_shifted_boxes(seed):
    generator = np.random.default_rng(seed)
    truth = boxes(generator, generator.integers(1, 7))
    shifted = np.roll(truth, generator.integers(-3, 4, 3), (0, 1, 2))
    holes = boxes(generator, 2)
    return truth, shifted & ~holes | boxes(generator, generator.integers(0, 3))


@pytest.mark.parametrize("seed", BY_THE_CHALLENGE)
def test_scores_are_those_of_the_challenges_own_code(seed):
    dice, hd95 = BY_THE_CHALLENGE[seed]
    found = lesion_score(*boxes_and_shifted_boxes(seed), MM)
    assert found.dice == pytest.approx(dice, abs=1e-12)
    assert found.hd95_mm == pytest.approx(
        hd95, abs=0.5
    )  # it weights surface by area, we count voxels
