"""The networks by name."""

import pytest
from torch import nn

from cache_schema.errors import InputError
from training.models.registry import build_model


def test_unetmm_takes_its_options():
    model = build_model("unetmm", num_classes=2, fuse_en2=True)
    assert isinstance(model, nn.Module)
    assert any(name.startswith("fusion.en2.cross_modal") for name in model.state_dict())


def test_an_unknown_name_is_one_line_with_the_known_ones():
    with pytest.raises(InputError, match=r"--model unetm: unknown.*unetmm") as caught:
        build_model("unetm", num_classes=3)
    assert "\n" not in str(caught.value)
