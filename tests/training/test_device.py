import pytest
import torch

from cache_schema.errors import InputError
from training.device import choose_device


def test_cpu_is_cpu():
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_finds_a_device_that_computes():
    assert torch.ones(2, device=choose_device("auto")).sum().item() == 2.0


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--device abacus"):
        choose_device("abacus")
