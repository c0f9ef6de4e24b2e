import numpy as np
import pytest

from pipeline.phantom.tumour import TISSUES, draw_anatomy

SHAPE = (64, 60, 40)
NEC, ED, ET = 1, 2, 4


def neighbours(mask: np.ndarray) -> np.ndarray:
    """Voxels that share a face with the mask and are not in it."""
    shifted = [np.roll(mask, step, axis) for axis in range(3) for step in (-1, 1)]
    return np.any(shifted, axis=0) & ~mask


@pytest.mark.parametrize("seed", range(8))
def test_a_tumour_is_one_to_eight_percent_of_the_brain_and_has_all_its_parts(seed):
    labels = draw_anatomy(np.random.default_rng(seed), SHAPE, has_enhancing=True).labels
    assert set(np.unique(labels)) == {0, NEC, ED, ET}
    assert 0.005 < (labels > 0).mean() < 0.08
    assert (labels > 0).sum() >= 100
    assert min((labels == part).sum() for part in (NEC, ED, ET)) >= 10


@pytest.mark.parametrize("seed", range(8))
def test_a_core_without_enhancement_is_all_label_1(seed):
    labels = draw_anatomy(np.random.default_rng(seed), SHAPE, has_enhancing=False).labels
    assert set(np.unique(labels)) == {0, NEC, ED}


@pytest.mark.parametrize("seed", range(40))
def test_the_smallest_volume_still_has_a_tumour_of_three_parts(seed):
    labels = draw_anatomy(np.random.default_rng(seed), (16, 16, 16), has_enhancing=True).labels
    assert set(np.unique(labels)) == {0, NEC, ED, ET}


@pytest.mark.parametrize("seed", range(8))
def test_necrosis_lies_inside_the_rim_and_the_rim_beside_oedema(seed):
    anatomy = draw_anatomy(np.random.default_rng(seed), (144, 140, 92), has_enhancing=True)
    labels = anatomy.place(anatomy.labels)
    around_necrosis = labels[neighbours(labels == NEC)]
    assert (around_necrosis == ET).mean() > 0.75
    around_core = labels[neighbours(np.isin(labels, (NEC, ET)))]
    assert (around_core == ED).mean() > 0.35


def test_fractions_are_shares_and_a_label_holds_mostly_its_own_tissue():
    anatomy = draw_anatomy(np.random.default_rng(1), SHAPE, has_enhancing=True)
    assert anatomy.fractions.min() >= -1e-6
    np.testing.assert_allclose(anatomy.fractions.sum(axis=0), 1, atol=1e-5)
    for tissue, label in (("ed", ED), ("et", ET), ("nec", NEC)):
        share = anatomy.fractions[TISSUES.index(tissue)]
        assert np.median(share[anatomy.labels == label]) > 0.5


def test_tumours_of_different_seeds_lie_in_different_places():
    def centre(seed: int) -> np.ndarray:
        anatomy = draw_anatomy(np.random.default_rng(seed), SHAPE, has_enhancing=True)
        return np.array([c[anatomy.labels > 0].mean() for c in anatomy.head.xyz])

    centres = np.array([centre(seed) for seed in range(6)])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)[np.triu_indices(6, 1)]
    assert apart.min() > 0.02
    assert apart.max() > 0.3


def test_placing_puts_every_value_at_its_voxel_and_zero_elsewhere():
    anatomy = draw_anatomy(np.random.default_rng(0), (18, 16, 20), has_enhancing=True)
    values = np.arange(1, len(anatomy.labels) + 1, dtype=np.int16)
    volume = anatomy.place(values)
    assert volume.shape == (18, 16, 20)
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(volume[volume > 0], values)
