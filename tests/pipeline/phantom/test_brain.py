import numpy as np
import pytest

from pipeline.phantom.brain import draw_head, draw_healthy, ramp, smooth_field


def test_a_smooth_field_has_mean_0_and_variance_1_and_changes_little_between_neighbours():
    field = smooth_field(np.random.default_rng(0), (90, 61, 70), (15, 12, 14))
    assert field.shape == (90, 61, 70)
    assert field.mean() == pytest.approx(0, abs=0.1)
    assert field.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.25  # white noise: 2 / sqrt(pi) = 1.13


def test_a_ramp_is_half_at_its_level_and_full_half_a_width_above():
    field = np.array([1.0, 1.5, 2.0, 2.25, 2.5, 9.0], np.float32)
    np.testing.assert_allclose(ramp(field, 2.0, 1.0), [0, 0, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("shape", [(64, 64, 40), (61, 50, 37), (16, 30, 19)])
@pytest.mark.parametrize("seed", range(4))
def test_a_brain_fills_about_16_percent_of_any_volume_and_touches_no_border(shape, seed):
    head = draw_head(np.random.default_rng(seed), shape)
    volume = np.zeros(shape, bool)
    volume[head.box] = head.brain
    assert 0.11 < volume.mean() < 0.22
    inner = volume[1:-1, 1:-1, 1:-1]
    assert inner.sum() == volume.sum()
    assert len(head.depth) == volume.sum()
    assert head.depth.min() > 0


def test_healthy_tissue_is_mostly_matter_with_some_fluid_and_adds_up_to_one():
    rng = np.random.default_rng(0)
    healthy = draw_healthy(rng, draw_head(rng, (64, 64, 40)))
    fluid, grey, white = healthy.fractions.mean(axis=1)
    assert 0.03 < fluid < 0.25
    assert 0.15 < grey < 0.6
    assert 0.3 < white < 0.8
    assert healthy.fractions.min() >= 0
    np.testing.assert_allclose(healthy.fractions.sum(axis=0), 1, atol=1e-6)
