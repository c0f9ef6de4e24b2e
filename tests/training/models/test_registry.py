"""The networks by name, and their options as they are typed."""

import pytest
from torch import nn

from cache_schema.errors import InputError
from training.config import TrainConfig
from training.models.initial import patch_of, random_model
from training.models.registry import MODELS, Network, build_model, read_options


class Options(nn.Module):
    def __init__(
        self,
        *,
        num_classes: int,
        patch: tuple[int, int, int],
        width: int = 8,
        depths: tuple[int, ...] = (1, 2),
        rate: float = 0.1,
        is_deep: bool = True,
    ):
        super().__init__()
        self.given = (num_classes, patch, width, depths, rate, is_deep)


@pytest.fixture(autouse=True)
def _options(monkeypatch):
    monkeypatch.setitem(
        MODELS, "options", Network(Options, is_3d=True, tiny={"width": 2, "rate": 0.5})
    )


def test_unetmm_takes_its_options():
    model = build_model("unetmm", num_classes=2, fuse_en2=True)
    assert isinstance(model, nn.Module)
    assert any(name.startswith("fusion.en2.cross_modal") for name in model.state_dict())


def test_an_unknown_name_is_one_line_with_the_known_ones():
    with pytest.raises(InputError, match=r"--model unetm: unknown.*unetmm") as caught:
        build_model("unetm", num_classes=3)
    assert "\n" not in str(caught.value)


def test_options_become_values_of_the_types_that_the_network_names():
    typed = {"width": "12", "depths": "3,1,4", "rate": "0.25", "is_deep": "false"}
    assert read_options("options", typed) == {
        "width": 12,
        "depths": (3, 1, 4),
        "rate": 0.25,
        "is_deep": False,
    }


def test_a_preset_gives_way_to_options_wherever_it_stands():
    assert read_options("options", {"size": "tiny"}) == {"width": 2, "rate": 0.5}
    for order in (("size", "width"), ("width", "size")):
        typed = {name: {"size": "tiny", "width": "5"}[name] for name in order}
        assert read_options("options", typed) == {"width": 5, "rate": 0.5}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "widht",
            "3",
            "widht=3: options has no such option; it has depths, is_deep, rate, width, size=tiny",
        ),
        ("patch", "3", "patch=3: options has no such option"),
        ("size", "huge", "size=huge: options has no such option"),
        ("width", "wide", "width=wide: Input should be a valid integer"),
        ("depths", "1,x", "depths=1,x: Input should be a valid integer"),
    ],
)
def test_an_option_that_cannot_be_is_named(option, value, message):
    with pytest.raises(InputError, match=f"^--model-option {message}"):
        read_options("options", {option: value})


def test_what_has_an_option_of_its_own_is_no_option_of_a_network():
    with pytest.raises(
        InputError, match=r"position=3d: unetmm has no such option; it has dropout$"
    ):
        read_options("unetmm", {"position": "3d"})


def test_a_network_of_volumes_is_built_for_the_patch_of_the_run():
    config = TrainConfig(
        model="options", crop=96, depth=64, weights="none", model_options={"size": "tiny"}
    )
    assert patch_of(config) == (64, 96, 96)
    assert random_model(config).given == (3, (64, 96, 96), 2, (1, 2), 0.5, True)
    assert patch_of(config.model_copy(update={"depth": None})) == (96, 96, 96)
    assert patch_of(TrainConfig()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "options", "position": "3d"}, "--position: options has nothing like it"),
        ({"model": "options", "fuse_en2": True}, "--fuse-en2: options has nothing like it"),
        ({"model": "unetmm", "depth": 32}, "--depth 32: unetmm takes single slices"),
        ({"model": "unetmm", "model_options": {"width": "3"}}, "unetmm has no such option"),
    ],
)
def test_a_setting_that_a_network_does_not_know_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        random_model(TrainConfig(weights="none", **settings))


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("transbts", {"channels": (4, 8, 8)}, "not enough values"),
        ("transbts", {"num_heads": 5}, "cannot be divided among 5 heads"),
        ("unetrpp", {"num_heads": 3}, "cannot be divided among 3 heads"),
        ("nnformer", {"width": 7}, "cannot be divided among"),
        ("nnformer", {"encoder_heads": (1, 2)}, "shorter"),
    ],
)
def test_options_with_which_a_network_cannot_be_built_are_named(model, options, reason):
    options = {**MODELS[model].tiny, **options}
    with pytest.raises(InputError, match=rf"^--model {model} cannot be built with .*{reason}") as e:
        build_model(model, num_classes=3, patch=(32, 32, 32), **options)
    assert "\n" not in str(e.value)
