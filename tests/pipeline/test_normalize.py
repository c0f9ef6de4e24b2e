"""Intensities: the statistics of the brain, and a background that stays exactly 0."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.normalize import (
    NORMALIZATIONS,
    NormalizationError,
    Scaling,
    make_scaler,
    percentile,
    zscore,
)


def brain(seed: int = 0, shape: tuple[int, int, int] = (7, 11, 13)) -> np.ndarray:
    """A volume of integers, 0 in its first two planes and where the head ends."""
    generator = np.random.default_rng(seed)
    image = generator.integers(50, 900, shape).astype(np.int16)
    image[:2] = 0
    image[:, :3] = 0
    return image


def normalize(image: np.ndarray, method: str) -> tuple[np.ndarray, Scaling]:
    scaling = NORMALIZATIONS[method](image)
    return make_scaler(image, scaling)(image), scaling


def line(values: list[float] | np.ndarray, dtype: type = np.int16) -> np.ndarray:
    """A volume of one row of voxels."""
    return np.array(values, dtype).reshape(1, 1, -1)


def test_zscore_has_the_populations_statistics():
    # Squared distances from 3.5: 6.25 + 2.25 + 0.25 + 20.25, over four and not over three.
    scaling = zscore(line([1, 2, 3, 8]))
    assert scaling.mean == 3.5
    assert scaling.std == pytest.approx(np.sqrt(29 / 4))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, ">i2", np.uint8])
def test_statistics_of_narrow_integers_are_exact(dtype):
    values = np.random.default_rng(5).integers(0, np.iinfo(dtype).max, (9, 61, 47), endpoint=True)
    image = values.astype(dtype)
    brain = [int(value) for value in values.ravel() if value]
    mean = Fraction(sum(brain), len(brain))
    variance = Fraction(sum(value**2 for value in brain), len(brain)) - mean**2
    scaling = zscore(image)
    assert scaling.mean == float(mean)
    assert scaling.std == math.sqrt(float(variance))


def test_the_order_of_voxels_does_not_change_the_statistics():
    image = brain(4)
    assert zscore(image) == zscore(image[::-1, :, ::-1]) == zscore(image.transpose(2, 0, 1))


def test_background_does_not_count():
    image = np.array([[[0, 0, 0, 4, 6, 0]]], np.int16)
    normalised, scaling = normalize(image, "zscore")
    assert (scaling.mean, scaling.std) == (5.0, 1.0)
    assert normalised.tolist() == [[[0, 0, 0, -1, 1, 0]]]


def test_the_brain_has_mean_0_and_standard_deviation_1_and_the_background_is_0():
    image = brain()
    normalised, _ = normalize(image, "zscore")
    inside = normalised[image != 0].astype(np.float64)
    assert inside.mean() == pytest.approx(0, abs=1e-4)
    assert inside.std() == pytest.approx(1, abs=1e-4)
    assert np.array_equal(normalised[image == 0], np.zeros(np.sum(image == 0)))
    assert not np.signbit(normalised[image == 0]).any()  # -0.0 would compress worse


def test_values_are_the_float64_zscore_rounded_once():
    image = brain(1)
    values = image[image != 0].astype(np.float64)
    expected = np.where(image != 0, (image - values.mean()) / values.std(), 0)
    np.testing.assert_array_equal(normalize(image, "zscore")[0], expected.astype(np.float16))


def test_large_intensities_lose_nothing_to_single_precision():
    # Sums of 16 million and more do not fit into float32's 24 bits.
    image = np.full((2, 300, 300), 10000, np.int16)
    image[1] = 10002
    normalised, scaling = normalize(image, "zscore")
    assert (scaling.mean, scaling.std) == (10001.0, 1.0)
    assert np.unique(normalised).tolist() == [-1, 1]


def test_scanner_units_come_back_from_mean_and_standard_deviation():
    image = brain(2)
    normalised, scaling = normalize(image, "zscore")
    exact = normalised.astype(np.float64)  # times a Python float, float16 would stay float16
    restored = np.where(image != 0, exact * scaling.std + scaling.mean, 0)
    # Half a unit in the last place of float16 below 2 is 2**-11.
    np.testing.assert_allclose(restored, image, atol=2**-11 * scaling.std)


def test_percentile_clips_half_a_percent_at_each_end():
    values = np.arange(1, 2002, dtype=np.int16)  # 0.5 % of 2000 steps is 10
    scaling = percentile(line(values))
    assert (scaling.low, scaling.high) == (11.0, 1991.0)
    clipped = np.clip(values, 11, 1991).astype(np.float64)
    assert scaling.mean == pytest.approx(clipped.mean())
    assert scaling.std == pytest.approx(clipped.std())
    normalised, _ = normalize(values.reshape(1, 3, 667), "percentile")
    assert normalised.min() == np.float16((11 - 1001) / clipped.std())
    assert normalised.max() == -normalised.min()


def test_zscore_does_not_clip():
    image = brain(3)
    image[4, 5, 6] = 20000
    assert normalize(image, "zscore")[0].max() > 3 * normalize(image, "percentile")[0].max()


@pytest.mark.parametrize("method", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, 0], "is empty"),
        ([0, 7, 7], "is constant inside the brain"),
        ([0, 7, float("nan")], "has voxels that are not finite"),
        ([0, 7, float("inf")], "has voxels that are not finite"),
    ],
)
def test_what_has_no_contrast_is_refused(method, values, message):
    with pytest.raises(NormalizationError, match=message):
        normalize(np.array(values, np.float32).reshape(1, 1, 3), method)


def test_a_brain_that_is_constant_once_outliers_are_clipped_is_refused():
    values = np.full(1000, 5, np.int16)
    values[0] = 900
    zscore(line(values))
    with pytest.raises(NormalizationError, match="is constant"):
        percentile(line(values))


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20.0), st.integers(-200, 200))
@settings(deadline=None, max_examples=40)
def test_gain_and_offset_of_the_scanner_do_not_show(seed, gain, offset):
    values = np.random.default_rng(seed).normal(1000, 100, 500)
    first, second = (zscore(line(v, np.float64)) for v in (values, values * gain + offset))
    np.testing.assert_allclose(
        (values - first.mean) / first.std,
        (values * gain + offset - second.mean) / second.std,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int16, -300, 900), (np.uint16, 0, 65536), (">i2", 0, 900), (np.int32, -(2**20), 2**24)],
)
def test_looking_up_gives_what_scaling_every_voxel_gives(dtype, low, high):
    image = np.random.default_rng(0).integers(low, high, (4, 20, 30)).astype(dtype)
    image[1] = 0
    normalised, scaling = normalize(image, "zscore")
    exact = (image.astype(np.float64) - scaling.mean) / scaling.std
    np.testing.assert_array_equal(normalised, np.where(image == 0, 0, exact).astype(np.float16))
