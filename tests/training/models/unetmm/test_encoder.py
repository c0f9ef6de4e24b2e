"""The shared encoder against torchvision's own forward pass, and its weights without a network."""

import pickle
from hashlib import sha256
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch.testing import assert_close
from torchvision.models import ResNet18_Weights, resnet18

from cache_schema.errors import InputError
from training.models.unetmm.encoder import (
    CHANNELS,
    IMAGENET_SHA256,
    LEVELS,
    Encoder,
    load_imagenet_weights,
    repeat_to_rgb,
)

WEIGHTS_FILE = "resnet18-f37072fd.pth"


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def accept(path, monkeypatch):
    """Take a file for torchvision's."""
    digest = sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr("training.models.unetmm.encoder.IMAGENET_SHA256", digest)


def test_every_level_has_the_size_and_channels_of_equations_3_to_6(encoder):
    features = encoder(torch.zeros(2, 4, 64, 96))
    sizes = {level: tuple(output.shape) for level, output in features.items()}
    assert sizes == {
        "en2": (2, 4, 64, 32, 48),
        "en4": (2, 4, 64, 16, 24),
        "en5": (2, 4, 128, 8, 12),
        "en6": (2, 4, 256, 4, 6),
        "en7": (2, 4, 512, 2, 3),
    }
    assert tuple(features) == LEVELS
    assert [output.shape[2] for output in features.values()] == list(CHANNELS.values())


def test_a_modality_becomes_three_equal_channels():
    image = torch.randn(2, 4, 5, 7)
    rgb = repeat_to_rgb(image)
    assert rgb.shape == (8, 3, 5, 7)
    for sample in range(2):
        for modality in range(4):
            for channel in range(3):
                assert torch.equal(rgb[4 * sample + modality, channel], image[sample, modality])


def test_each_modality_passes_through_the_layers_of_resnet18(encoder):
    reference = resnet18(weights=None).eval()
    reference.load_state_dict(encoder.state_dict(), strict=False)
    image = torch.randn(2, 4, 64, 64)
    en7 = encoder(image)["en7"]
    for modality in range(4):
        gray = image[:, modality : modality + 1].repeat(1, 3, 1, 1)
        hidden = reference.maxpool(reference.relu(reference.bn1(reference.conv1(gray))))
        for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            hidden = layer(hidden)
        assert_close(en7[:, modality], hidden, atol=1e-5, rtol=1e-5)


def test_imagenet_weights_are_found_in_the_folder_that_the_error_names(torch_home, monkeypatch):
    torch.manual_seed(1)
    state = resnet18(weights=None).state_dict()
    torch.save(state, torch_home / WEIGHTS_FILE)
    accept(torch_home / WEIGHTS_FILE, monkeypatch)
    encoder = Encoder()
    load_imagenet_weights(encoder)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_without_network_the_error_names_file_and_folder_and_the_way_around(
    torch_home, monkeypatch
):
    def refuse(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(InputError) as caught:
        load_imagenet_weights(Encoder())
    message = str(caught.value)
    assert "\n" not in message
    assert WEIGHTS_FILE in message
    assert ResNet18_Weights.IMAGENET1K_V1.url in message
    assert str(torch_home) in message
    assert "--weights none" in message
    assert "no route to host" in message


@pytest.mark.parametrize("content", [b"", b"<html>blocked</html>", b"PK\x03\x04 cut short"])
def test_a_damaged_weights_file_is_one_clear_line(torch_home, content):
    (torch_home / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InputError, match=WEIGHTS_FILE) as caught:
        load_imagenet_weights(Encoder())
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(torch_home, monkeypatch):
    torch.save({"conv1.weight": torch.zeros(3)}, torch_home / WEIGHTS_FILE)
    accept(torch_home / WEIGHTS_FILE, monkeypatch)
    with pytest.raises(InputError, match=WEIGHTS_FILE):
        load_imagenet_weights(Encoder())


def test_the_digest_begins_as_the_name_of_the_file_says():
    assert f"resnet18-{IMAGENET_SHA256[:8]}.pth" == WEIGHTS_FILE
    assert Path(ResNet18_Weights.IMAGENET1K_V1.url).name == WEIGHTS_FILE


def test_a_file_put_by_hand_with_other_weights_is_refused_at_every_load(torch_home):
    torch.save(resnet18(weights=None).state_dict(), torch_home / WEIGHTS_FILE)
    with pytest.raises(InputError, match=f"{WEIGHTS_FILE} .its SHA-256 is not {IMAGENET_SHA256}"):
        load_imagenet_weights(Encoder())


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
def test_a_planted_pickle_runs_nothing_even_if_its_digest_were_right(
    save, torch_home, tmp_path, monkeypatch
):
    save({"conv1.weight": Planted(tmp_path / "ran")}, torch_home / WEIGHTS_FILE)
    with pytest.raises(InputError, match="its SHA-256"):
        load_imagenet_weights(Encoder())
    accept(torch_home / WEIGHTS_FILE, monkeypatch)
    with pytest.raises(InputError, match="it holds other things than tensors"):
        load_imagenet_weights(Encoder())
    assert not (tmp_path / "ran").exists()
