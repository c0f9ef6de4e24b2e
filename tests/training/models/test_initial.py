import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from cache_schema.errors import InputError
from training.config import TrainConfig
from training.models.initial import initial_model


def test_the_same_seed_builds_the_same_network_and_leaves_the_global_generator_alone():
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, second = (initial_model(TrainConfig(weights="none", seed=3)) for _ in range(2))
    other = initial_model(TrainConfig(weights="none", seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "encoder.layer1.0.conv1.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_resnet18_state_dict_fills_the_encoder(tmp_path, suffix):
    state = resnet18(weights=None).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = initial_model(TrainConfig(weights=str(path)))
    for name in ("conv1.weight", "layer4.1.bn2.running_var"):
        assert torch.equal(model.encoder.state_dict()[name], state[name])


def test_a_file_that_is_no_state_dict_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"--weights .*weights\.safetensors"):
        initial_model(TrainConfig(weights=str(path)))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(InputError, match="not a ResNet18 state dict"):
        initial_model(TrainConfig(weights=str(path)))
