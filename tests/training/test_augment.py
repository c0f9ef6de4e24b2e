"""Augmentation: exact where nothing is interpolated, replayable, and true to the labels."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from training.augment import AugmentSettings, apply, draw

STILL = AugmentSettings(rotation_degrees=0.0, flip_probability=0.0, noise_std=0.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(plane, batch=3, seed=0):
    generator = seeded(seed)
    image = torch.randn(batch, 4, *plane, generator=generator)
    values = torch.tensor([0, 1, 2, 4], dtype=torch.uint8)
    return image, values[torch.randint(4, (batch, *plane), generator=generator)]


def fixed(plane, crop, *, offset=(0, 0), angle_rad=0.0, flips=(False, False)):
    """A draw for one slice, chosen rather than drawn."""
    still = draw(seeded(), 1, plane=plane, crop=crop, settings=STILL)
    return dataclasses.replace(
        still,
        offsets=torch.tensor([offset]),
        angles_rad=torch.tensor([angle_rad]),
        flips=torch.tensor([flips]),
    )


@pytest.mark.parametrize("plane", [(240, 240), (61, 47), (64, 96)])
@pytest.mark.parametrize("crop", [32, 45])
def test_without_rotation_and_flip_the_result_is_the_plain_crop_bit_for_bit(plane, crop):
    image, label = batch_of(plane)
    drawn = draw(seeded(), 3, plane=plane, crop=crop, settings=STILL)
    crops, labels = apply(drawn, image, label)
    for index, (row, column) in enumerate(drawn.offsets.tolist()):
        assert torch.equal(crops[index], image[index, :, row : row + crop, column : column + crop])
        assert torch.equal(labels[index], label[index, row : row + crop, column : column + crop])


def test_a_crop_may_reach_every_edge_and_never_beyond():
    drawn = draw(seeded(), 400, plane=(35, 33), crop=32, settings=STILL)
    rows, columns = drawn.offsets.unbind(1)
    assert sorted(set(rows.tolist())) == [0, 1, 2, 3]
    assert sorted(set(columns.tolist())) == [0, 1]


def test_a_plane_smaller_than_the_crop_is_centred_in_zeros():
    image, label = batch_of((5, 6), batch=1)
    crops, labels = apply(draw(seeded(), 1, plane=(5, 6), crop=8, settings=STILL), image, label)
    expected = torch.zeros(1, 4, 8, 8)
    expected[:, :, 2:7, 1:7] = image  # of three missing rows, two above
    assert torch.equal(crops, expected)
    assert torch.equal(labels[:, 2:7, 1:7], label)
    assert labels.count_nonzero() == label.count_nonzero()


def test_a_plane_may_be_smaller_than_the_crop_along_one_axis_only():
    image, label = batch_of((4, 12), batch=1)
    crops, _ = apply(fixed((4, 12), 8, offset=(-2, 3)), image, label)
    assert torch.equal(crops[:, :, 2:6], image[:, :, :, 3:11])
    assert not crops[:, :, [0, 1, 6, 7]].any()


@pytest.mark.parametrize(
    ("flips", "axes"), [((True, False), [1]), ((False, True), [2]), ((True, True), [1, 2])]
)
def test_flips_mirror_the_crop_exactly(flips, axes):
    image, label = batch_of((37, 50), batch=1)
    crops, labels = apply(fixed((37, 50), 32, offset=(3, 11), flips=flips), image, label)
    assert torch.equal(crops[0], image[0, :, 3:35, 11:43].flip(axes))
    assert torch.equal(labels, label[:, 3:35, 11:43].flip(axes))


def test_a_quarter_turn_is_counter_clockwise_about_the_centre_of_the_crop():
    image, label = batch_of((40, 48), batch=1)
    crops, labels = apply(fixed((40, 48), 32, offset=(5, 9), angle_rad=math.pi / 2), image, label)
    assert_close(crops, image[:, :, 5:37, 9:41].rot90(1, (2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(labels, label[:, 5:37, 9:41].rot90(1, (1, 2)))


def test_a_turned_crop_is_flipped_after_it_was_turned():
    image, label = batch_of((40, 48), batch=1)
    drawn = fixed((40, 48), 32, offset=(5, 9), angle_rad=math.pi / 2, flips=(True, False))
    _, labels = apply(drawn, image, label)
    assert torch.equal(labels, label[:, 5:37, 9:41].rot90(1, (1, 2)).flip(1))


def test_image_and_label_turn_together():
    label = torch.zeros(8, 48, 48, dtype=torch.uint8)
    label[:, 14:30, 20:40] = 4
    image = (label == 4).float()[:, None].repeat(1, 4, 1, 1)
    settings = AugmentSettings(rotation_degrees=40.0, noise_std=0.0)
    crops, labels = apply(
        draw(seeded(), 8, plane=(48, 48), crop=44, settings=settings), image, label
    )
    # Away from the rim, where the image is interpolated, they must agree.
    clear = (crops[:, 0] - 0.5).abs() > 0.45
    assert clear.float().mean() > 0.9
    assert torch.equal((crops[:, 0] > 0.5)[clear], (labels == 4)[clear])


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(9, 50),
    width=st.integers(9, 50),
    crop=st.sampled_from([16, 33]),
)
def test_no_label_value_is_new_and_the_shapes_are_those_of_the_crop(seed, height, width, crop):
    image, _ = batch_of((height, width), seed=seed)
    label = torch.full((3, height, width), 4, dtype=torch.uint8)
    label[:, : height // 2] = 1
    drawn = draw(seeded(seed), 3, plane=(height, width), crop=crop, settings=AugmentSettings(45.0))
    crops, labels = apply(drawn, image, label)
    assert crops.shape == (3, 4, crop, crop)
    assert labels.shape == (3, crop, crop)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, 1, 4}


def test_the_same_draw_gives_the_same_bits_twice():
    image, label = batch_of((64, 50))
    drawn = draw(seeded(), 3, plane=(64, 50), crop=48, settings=AugmentSettings())
    first, second = apply(drawn, image, label), apply(drawn, image, label)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_same_seed_draws_the_same_and_the_next_draw_differs():
    generator = seeded(5)
    first = draw(generator, 4, plane=(64, 64), crop=48, settings=AugmentSettings())
    second = draw(generator, 4, plane=(64, 64), crop=48, settings=AugmentSettings())
    again = draw(seeded(5), 4, plane=(64, 64), crop=48, settings=AugmentSettings())
    assert torch.equal(first.angles_rad, again.angles_rad)
    assert torch.equal(first.offsets, again.offsets)
    assert torch.equal(first.flips, again.flips)
    assert first.noise_seed == again.noise_seed != second.noise_seed
    assert not torch.equal(first.angles_rad, second.angles_rad)


def test_the_inputs_stay_as_they_were():
    image, label = batch_of((40, 40))
    before = image.clone(), label.clone()
    apply(draw(seeded(), 3, plane=(40, 40), crop=32, settings=AugmentSettings()), image, label)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_noise_has_the_standard_deviation_that_was_asked_for():
    image, label = batch_of((64, 64), batch=8)
    noisy = dataclasses.replace(STILL, noise_std=0.01)
    clean, _ = apply(draw(seeded(), 8, plane=(64, 64), crop=64, settings=STILL), image, label)
    crops, _ = apply(draw(seeded(), 8, plane=(64, 64), crop=64, settings=noisy), image, label)
    noise = crops - clean
    assert noise.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(noise.mean().item()) < 1e-4


def test_angles_and_flips_fill_their_ranges():
    drawn = draw(seeded(), 4000, plane=(64, 64), crop=64, settings=AugmentSettings())
    degrees = drawn.angles_rad.rad2deg()
    assert degrees.abs().max() <= 15.0
    assert degrees.min() < -14.9
    assert degrees.max() > 14.9
    assert_close(drawn.flips.float().mean(dim=0), torch.tensor([0.5, 0.5]), atol=0.03, rtol=0)


def test_half_precision_slices_as_they_lie_in_a_cache_become_float32():
    image, label = batch_of((50, 40))
    drawn = draw(seeded(), 3, plane=(50, 40), crop=32, settings=AugmentSettings())
    crops, _ = apply(drawn, image.half(), label)
    assert crops.dtype == torch.float32
    assert_close(crops, apply(drawn, image.half().float(), label)[0])


def test_slices_of_another_size_than_drawn_for_are_refused():
    drawn = draw(seeded(), 3, plane=(50, 40), crop=32, settings=AugmentSettings())
    with pytest.raises(ValueError, match=r"\(40, 50\), drawn for \(50, 40\)"):
        apply(drawn, *batch_of((40, 50)))


def test_modality_dropout_zeroes_a_share_of_the_modalities_and_always_leaves_one():
    settings = dataclasses.replace(STILL, modality_dropout=0.5)
    drawn = draw(seeded(), 2000, plane=(8, 8), crop=8, settings=settings)
    assert drawn.present.any(dim=1).all()
    # One half each, but of the sixteenth of slices that would lose all, one modality stays.
    assert drawn.present.float().mean().item() == pytest.approx(0.5 + 1 / 64, abs=0.02)
    image, label = batch_of((8, 8), batch=6)
    some = draw(seeded(), 6, plane=(8, 8), crop=8, settings=settings)
    crops, labels = apply(some, image, label)
    for crop, plane, present in zip(crops, image, some.present, strict=True):
        for modality in range(4):
            expected = plane[modality] if present[modality] else torch.zeros(8, 8)
            assert torch.equal(crop[modality], expected)
    assert torch.equal(labels, label)


def test_without_modality_dropout_all_modalities_stay_and_nothing_else_changes():
    plain = draw(seeded(), 5, plane=(8, 8), crop=8, settings=AugmentSettings())
    dropped = AugmentSettings(modality_dropout=0.9)
    other = draw(seeded(), 5, plane=(8, 8), crop=8, settings=dropped)
    assert plain.present.all()
    assert not other.present.all()
    assert torch.equal(plain.angles_rad, other.angles_rad)
    assert plain.noise_seed == other.noise_seed


def volumes(batch=3, depth=5, plane=(40, 36)):
    image = torch.randn(batch, 4, depth, *plane, generator=seeded(1))
    values = torch.tensor([0, 1, 2, 4], dtype=torch.uint8)
    return image, values[torch.randint(4, (batch, depth, *plane), generator=seeded(2))]


def test_every_slice_of_a_volume_is_cropped_and_turned_like_a_slice_alone():
    image, label = volumes()
    strong = AugmentSettings(rotation_degrees=40.0, noise_std=0.0, modality_dropout=0.4)
    drawn = draw(seeded(3), 3, plane=(40, 36), crop=32, settings=strong)
    drawn = dataclasses.replace(drawn, depth_flips=torch.zeros(3, dtype=torch.bool))
    crops, labels = apply(drawn, image, label)
    assert crops.shape == (3, 4, 5, 32, 32)
    for z in range(5):
        alone, label_alone = apply(drawn, image[:, :, z], label[:, z])
        assert torch.equal(crops[:, :, z], alone)
        assert torch.equal(labels[:, z], label_alone)


def test_a_volume_is_turned_upside_down_where_that_was_drawn_with_its_labels():
    image, label = volumes()
    drawn = draw(seeded(3), 3, plane=(40, 36), crop=32, settings=STILL)
    upright = apply(drawn, image, label)
    flips = torch.tensor([True, False, True])
    flipped = apply(dataclasses.replace(drawn, depth_flips=flips), image, label)
    for index, is_flipped in enumerate(flips.tolist()):
        for before, after in zip(upright, flipped, strict=True):
            expected = before[index].flip(-3) if is_flipped else before[index]
            assert torch.equal(after[index], expected)


def test_half_of_the_volumes_are_turned_upside_down_and_slices_are_drawn_as_without_them():
    drawn = draw(seeded(), 1000, plane=(40, 36), crop=32, settings=AugmentSettings())
    assert 400 < int(drawn.depth_flips.sum()) < 600
    generator = seeded()
    torch.rand(1000, 2, generator=generator, dtype=torch.float64)
    angles = (2.0 * torch.rand(1000, generator=generator) - 1.0) * math.radians(15.0)
    assert torch.equal(drawn.angles_rad, angles)
