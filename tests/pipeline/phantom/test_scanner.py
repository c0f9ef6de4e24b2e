import numpy as np
import pytest

from pipeline.phantom.scanner import Scanner, draw_scanners, scan
from pipeline.phantom.tumour import TISSUES, draw_anatomy

SHAPE = (64, 60, 40)


def median_signals(seed: int, scanner: Scanner) -> dict[str, dict[str, float]]:
    """Median of each modality over the voxels that are nearly pure in a tissue."""
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng, SHAPE, has_enhancing=True)
    images = scan(rng, anatomy, scanner)
    pure = {
        tissue: anatomy.place((share > 0.75).astype(np.uint8)).astype(bool)
        for tissue, share in zip(TISSUES, anatomy.fractions, strict=True)
    }
    return {
        modality: {tissue: float(np.median(image[where])) for tissue, where in pure.items()}
        for modality, image in images.items()
    }


@pytest.mark.parametrize("site", range(6))
@pytest.mark.parametrize("seed", range(2))
def test_every_scanner_shows_tissues_in_the_order_that_radiologists_know(site, seed):
    signal = median_signals(10 * site + seed, draw_scanners(np.random.default_rng(seed))[site])
    t1, t1ce, t2, flair = (signal[m] for m in ("t1", "t1ce", "t2", "flair"))
    assert t1["wm"] > t1["gm"] > t1["csf"]
    assert max(t1["ed"], t1["et"], t1["nec"]) < t1["wm"]
    assert t1ce["et"] > 1.1 * t1ce["wm"]
    assert t1ce["nec"] < t1ce["wm"]
    assert t2["csf"] > t2["gm"] > t2["wm"]
    assert min(t2["ed"], t2["nec"]) > t2["wm"]
    assert flair["csf"] < flair["wm"]
    assert flair["ed"] > 1.2 * flair["wm"]
    assert flair["nec"] < flair["et"] < flair["ed"]


def test_images_are_int16_positive_in_the_brain_and_zero_outside():
    rng = np.random.default_rng(0)
    anatomy = draw_anatomy(rng, SHAPE, has_enhancing=True)
    brain = anatomy.place(np.ones_like(anatomy.labels)) > 0
    images = scan(rng, anatomy, Scanner(gain=300.0, gamma=1.0, bias=0.1, noise=0.05))
    assert list(images) == ["t1", "t1ce", "t2", "flair"]
    for image in images.values():
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image > 0, brain)


def test_an_extreme_gain_saturates_instead_of_wrapping_around():
    rng = np.random.default_rng(0)
    anatomy = draw_anatomy(rng, (20, 20, 20), has_enhancing=True)
    images = scan(rng, anatomy, Scanner(gain=1e6, gamma=1.0, bias=0.0, noise=0.01))
    assert {int(image.max()) for image in images.values()} == {32767}
    assert min(int(image.min()) for image in images.values()) == 0


@pytest.mark.parametrize("seed", range(5))
def test_scanners_differ_from_each_other_in_every_setting(seed):
    scanners = draw_scanners(np.random.default_rng(seed))
    for setting in ("gain", "gamma", "bias", "noise"):
        assert len({getattr(s, setting) for s in scanners}) == 6


def test_sites_differ_even_after_z_scores():
    def contrast(scanner: Scanner) -> float:
        """How far fluid lies above white matter in T2, in standard deviations of the brain."""
        rng = np.random.default_rng(5)
        anatomy = draw_anatomy(rng, SHAPE, has_enhancing=True)
        image = scan(rng, anatomy, scanner)["t2"].astype(float)
        brain = image[image > 0]
        return float((np.percentile(brain, 97) - np.median(brain)) / brain.std())

    contrasts = [contrast(s) for s in draw_scanners(np.random.default_rng(0))]
    assert max(contrasts) - min(contrasts) > 0.2


def test_gain_scales_intensities_and_gamma_changes_their_ratio():
    plain = median_signals(3, Scanner(gain=400.0, gamma=1.0, bias=0.0, noise=0.02))["t1"]
    loud = median_signals(3, Scanner(gain=1200.0, gamma=1.0, bias=0.0, noise=0.02))["t1"]
    strong = median_signals(3, Scanner(gain=400.0, gamma=1.4, bias=0.0, noise=0.02))["t1"]
    assert loud["wm"] / plain["wm"] == pytest.approx(3, rel=0.01)
    assert loud["wm"] / loud["gm"] == pytest.approx(plain["wm"] / plain["gm"], rel=0.01)
    expected = (plain["wm"] / plain["gm"]) ** 1.4
    assert strong["wm"] / strong["gm"] == pytest.approx(expected, rel=0.02)
