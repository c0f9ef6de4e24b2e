import json

import pytest

from cache_schema.errors import InputError
from training.config import (
    TrainConfig,
    is_of_earlier_release,
    make_config,
    named_values,
    read_config,
    write_config,
)
from training.config_history import ADDED


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


def saved(run, config=None):
    """Save settings and give the document."""
    write_config(run, config or make_config(crop=64, seed=3, learning_rate=0.25))
    return json.loads((run / "config.json").read_text())


def refuse(run, document, match):
    (run / "config.json").write_text(
        document if isinstance(document, str) else json.dumps(document), encoding="utf-8"
    )
    with pytest.raises(InputError, match=match) as caught:
        read_config(run)
    assert str(run / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "bring the file back" in str(caught.value)


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_no_setting_may_be_missing_or_changed(name, tmp_path):
    document = saved(tmp_path)
    without = {key: value for key, value in document.items() if key != name}
    refuse(tmp_path, without, "changed since the run began")
    refuse(tmp_path, {**document, name: "other"}, "changed since the run began")


@pytest.mark.parametrize("name", ["settings_version", "settings_digest"])
@pytest.mark.parametrize("value", [None, 1, "2", [], True])
def test_the_version_and_the_digest_of_settings_cannot_be_lost(name, value, tmp_path):
    document = saved(tmp_path)
    refuse(tmp_path, {**document, name: value}, "changed since")
    del document[name]
    refuse(tmp_path, document, "changed since")


def test_settings_of_a_later_release_say_so(tmp_path):
    refuse(tmp_path, {**saved(tmp_path), "settings_version": 3}, "version 3 is that of a later")


def of_version_1(document, num_groups):
    """Take away what version 1 lacked when only some groups of settings had come."""
    later = {name for group in ADDED[num_groups:] for name in group}
    own = {"settings_version", "settings_digest"}
    return {key: value for key, value in document.items() if key not in later | own}


def test_settings_of_each_earlier_release_mean_what_they_meant_then(tmp_path):
    document = saved(tmp_path)
    for num_groups in range(len(ADDED) + 1):
        old = of_version_1(document, num_groups)
        (tmp_path / "config.json").write_text(json.dumps(old))
        config = read_config(tmp_path)
        assert (config.crop, config.seed, config.learning_rate) == (64, 3, 0.25)
        assert config.precision == ("auto" if num_groups else "float32")
        assert config.compile == ("auto" if num_groups else "off")
        assert is_of_earlier_release(tmp_path)


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_settings_of_an_earlier_release_lack_whole_groups_or_nothing(name, tmp_path):
    old = of_version_1(saved(tmp_path), len(ADDED))
    del old[name]
    refuse(tmp_path, old, f"lacks .*{name}")


def test_every_setting_that_came_later_is_one(tmp_path):
    names = [name for group in ADDED for name in group]
    assert len(set(names)) == len(names) == 16
    assert set(names) < TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty: perhaps the disk was full"),
        ('{"crop": 64', "Expecting"),
        ("[1]", "not a JSON object"),
        ('{"crop": NaN}', "NaN is no finite number"),
        ('{"crop": 1e999}', "1e999 is no finite number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"crop": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"crop": 64, "crop": 96}', "names a key twice"),
        ('{"crop": "\\ud800"}', "half a character"),
    ],
)
def test_settings_that_are_no_settings_are_one_line(text, reason, tmp_path):
    refuse(tmp_path, text, reason)


def test_settings_in_another_encoding_or_in_a_folder_are_one_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes('{"crop": 64}'.encode("utf-16"))
    with pytest.raises(InputError, match=r"config\.json cannot be read \(not UTF-8 text"):
        read_config(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"config\.json cannot be read \(Is a directory"):
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
