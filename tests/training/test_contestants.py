"""Who takes part in a comparison, as it is typed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import InputError
from training.contestants import MOST_EPOCHS, Contestant, divide, read_contestants


def test_networks_are_separated_by_commas_with_options_and_flips_of_their_own():
    assert read_contestants(["unetmm,transbts+tta", "unet3d:size=tiny:width=4+tta"]) == (
        Contestant("unetmm"),
        Contestant("transbts", tta=True),
        Contestant("unet3d", {"size": "tiny", "width": "4"}, tta=True),
    )


def test_a_network_with_and_without_flips_is_one_run_with_two_scores():
    plain, flipped = read_contestants(["unet3d:width=4,unet3d:width=4+tta"])
    assert plain.run_name == flipped.run_name == plain.name == "unet3d-width=4"
    assert flipped.name == "unet3d-width=4+tta"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["unetmm,unetmm"], "--models unetmm: named twice"),
        (["a+tta", "a+tta"], r"--models a\+tta: named twice"),
        (["unet3d:tiny"], "--models tiny: write it as NAME=VALUE"),
        ([","], "--models: name a network"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        read_contestants(texts)


def test_a_list_of_numbers_is_one_option():
    first, second = read_contestants(["unet3d:channels=4,4,8:strides=2,2,transbts+tta,"])
    assert first.options == {"channels": "4,4,8", "strides": "2,2"}
    assert (second.model, second.tta) == ("transbts", True)


@settings(deadline=None)
@given(st.integers(1, 100_000))
def test_epochs_divide_the_steps_without_a_rest(steps):
    parts = divide(steps)
    assert parts["rounds"] * parts["local_steps"] == steps
    assert parts["rounds"] <= MOST_EPOCHS


def test_epochs_are_as_many_as_can_be():
    assert divide(2000) == {"rounds": 10, "local_steps": 200}
    assert divide(27) == {"rounds": 9, "local_steps": 3}
    assert divide(7) == {"rounds": 7, "local_steps": 1}
    assert divide(13) == {"rounds": 1, "local_steps": 13}
