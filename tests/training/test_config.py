import json

import pytest

from cache_schema.errors import InputError
from training.config import TrainConfig, make_config, named_values, read_config, write_config


def test_defaults_are_those_of_the_paper():
    config = TrainConfig()
    assert (config.rounds, config.local_epochs, config.batch_size) == (30, 3, 8)
    assert (config.learning_rate, config.crop, config.noise_std) == (1e-4, 224, 0.01)
    assert (config.strategy, config.weights, config.position) == ("fedavg", "imagenet", "2d")


def test_settings_come_back_as_they_were_saved(tmp_path):
    config = make_config(crop=64, target="regions", learning_rate=3e-4)
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(InputError) as caught:
        make_config(crop=100, rounds=0)
    assert "--crop" in str(caught.value)
    assert "--rounds" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_setting_that_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError, match=r"^--learning-rate: .*finite number"):
        make_config(learning_rate=value)


def test_adaptive_epochs_and_a_fixed_number_of_steps_exclude_each_other():
    assert make_config(epoch_schedule="adaptive").local_steps is None
    assert make_config(local_steps=5).epoch_schedule == "constant"
    with pytest.raises(InputError, match=r"^--epoch-schedule: adapts passes; with --local-steps"):
        make_config(epoch_schedule="adaptive", local_steps=5)


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        read_config(tmp_path)


def test_a_setting_of_another_release_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"crop": 64, "momentum": 0.9}))
    with pytest.raises(InputError, match="momentum"):
        read_config(tmp_path)


def test_what_is_not_said_is_what_is_usual_for_the_network():
    unsaid = {"crop": None, "batch_size": None, "weights": None}
    flat, volume = make_config(**unsaid), make_config(model="tiny3d", **unsaid)
    assert (flat.crop, flat.batch_size, flat.weights) == (224, 8, "imagenet")
    assert (volume.crop, volume.batch_size, volume.weights) == (128, 2, "none")
    assert make_config(model="tiny3d", **{**unsaid, "crop": 64}).crop == 64


def test_an_unknown_network_is_named_before_anything_else():
    with pytest.raises(InputError, match="--model nnunet: unknown"):
        make_config(model="nnunet")


def test_values_of_an_option_are_named_by_it():
    assert named_values("--model-option", ["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(InputError, match="--model-option width: write it as NAME=VALUE"):
        named_values("--model-option", ["width"])
