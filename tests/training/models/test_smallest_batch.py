"""How few examples networks can be trained on, held against what PyTorch does with as few."""

import pytest
import torch
from torch import nn

from cache_schema.errors import InputError
from tests.training.conftest import TinyNet
from training.config import make_config
from training.models.initial import random_model
from training.models.smallest_batch import smallest_batch


class Deep(nn.Module):
    """Norm layers at the end of a network that shrinks sides by 32."""

    def __init__(self, norm, looks_at_values=False):
        super().__init__()
        self.layers = nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(4, 3, 1), norm(3), nn.Dropout(0.5))
        self.looks_at_values = looks_at_values

    def forward(self, image):
        if self.looks_at_values:
            image = image + image.sum().item()
        return self.layers(image)


@pytest.fixture
def config(tiny_config):
    return tiny_config.model_copy(update={"crop": 32, "batch_size": 2})


@pytest.mark.parametrize(("crop", "least"), [(32, 2), (64, 1), (224, 1)])
def test_unetmm_needs_two_slices_where_its_bottom_is_a_single_pixel(crop, least):
    config = make_config(weights="none", crop=crop, batch_size=2)
    model = random_model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert smallest_batch(model, config) == least
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["unet3d", "resunet3d", "transbts", "unetr", "nnformer"])
def test_networks_of_volumes_need_no_second_patch(name):
    config = make_config(model=name, model_options={"size": "tiny"}, crop=32, depth=32)
    assert smallest_batch(random_model(config), config) == 1


@pytest.mark.parametrize("looks_at_values", [False, True])
def test_the_pass_of_a_network_decides_and_leaves_random_numbers_alone(config, looks_at_values):
    model = Deep(nn.BatchNorm2d, looks_at_values)
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert smallest_batch(model, config) == 2
    assert torch.equal(torch.rand(1), drawn)
    larger = config.model_copy(update={"crop": 64, "batch_size": 1})
    assert smallest_batch(model, larger) == 1
    assert smallest_batch(Deep(nn.Identity, looks_at_values), config) == 1


def test_a_batch_that_is_too_small_names_the_options_that_mend_it(config):
    with pytest.raises(
        InputError, match=r"^--batch-size 1: .*--crop 32.*--batch-size 2 or a larger"
    ):
        smallest_batch(Deep(nn.BatchNorm2d), config.model_copy(update={"batch_size": 1}))


def test_a_crop_of_which_no_batch_can_be_trained_is_refused(config):
    with pytest.raises(InputError, match=r"^--crop/--depth: .*32 x 32.*a larger --crop or --depth"):
        smallest_batch(Deep(nn.InstanceNorm2d), config)


def test_another_fault_of_a_network_is_not_taken_for_this_one(config):
    class Faulty(TinyNet):
        def forward(self, image):
            raise ValueError("not mine")

    with pytest.raises(ValueError, match="not mine"):
        smallest_batch(Faulty(3), config)
