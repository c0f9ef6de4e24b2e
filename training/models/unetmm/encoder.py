"""The shared ResNet18 and its ImageNet weights (paper, section 2.2)."""

from http.client import HTTPException
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18  # type: ignore[import-untyped]

from cache_schema.errors import InputError
from training.models.state_dict import StateDictError, read_state_dict

Level = Literal["en2", "en4", "en5", "en6", "en7"]

CHANNELS: Final[dict[Level, int]] = {"en2": 64, "en4": 64, "en5": 128, "en6": 256, "en7": 512}
"""Channels of every level of the encoder, fine to coarse (equations 3 to 6)."""

LEVELS: Final[tuple[Level, ...]] = tuple(CHANNELS)

IMAGENET_SHA256: Final = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
"""Of torchvision's file, whose name carries the first eight digits."""

STRIDE: Final = 32
"""Pixels of the image along one side of a pixel of `en7`."""


class Encoder(nn.Module):
    """One ResNet18 for all modalities, equation 2.

    The four modalities of a batch pass as one batch of four times its size, so BatchNorm sees their
    joint statistics. He et al. (2016), arXiv:1512.03385; layers and names of the weights are
    torchvision's, without the classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        backbone = resnet18(weights=None)
        self.conv1 = backbone.conv1
        self.bn1 = backbone.bn1
        self.relu = backbone.relu
        self.maxpool = backbone.maxpool
        self.layer1 = backbone.layer1
        self.layer2 = backbone.layer2
        self.layer3 = backbone.layer3
        self.layer4 = backbone.layer4

    def forward(
        self, image: Float[Tensor, "batch modality height width"]
    ) -> dict[Level, Float[Tensor, "batch modality _ _ _"]]:
        """Compute the features of every modality at every level.

        Args:
            image: Height and width are multiples of `STRIDE`.

        Returns:
            Features (batch, modality, channel, rows, columns), by level. In memory the channels
            come last: the attention that follows reads a pixel's channels as one vector.
        """
        batch, modality = image.shape[:2]
        en2 = self.relu(self.bn1(self.conv1(repeat_to_rgb(image))))
        en4 = self.layer1(self.maxpool(en2))
        en5 = self.layer2(en4)
        en6 = self.layer3(en5)
        en7 = self.layer4(en6)
        outputs = (en2, en4, en5, en6, en7)
        return {
            level: output.unflatten(0, (batch, modality))
            for level, output in zip(LEVELS, outputs, strict=True)
        }


def repeat_to_rgb(
    image: Float[Tensor, "batch modality height width"],
) -> Float[Tensor, "batch*modality 3 height width"]:
    """Give every modality the three channels that ImageNet weights expect, channels last."""
    gray = image.flatten(0, 1).unsqueeze(1)
    return gray.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def load_imagenet_weights(encoder: Encoder) -> None:
    """Fill the encoder with torchvision's ImageNet weights of ResNet18.

    The file is read from torch's cache if it is there and downloaded otherwise. Its SHA-256 is checked
    each time, as it may have been put there by hand; only tensors are read from it.

    Args:
        encoder: Changed in place.

    Raises:
        InputError: If there is neither file nor network, or it is another file; put the named file in
            the named folder.
    """
    url = ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), IMAGENET_SHA256, progress=False)
        state = read_state_dict(path, digest=IMAGENET_SHA256)
        encoder.load_state_dict(
            {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        )
    # A download fails with OSError (URLError is one) or HTTPException, a wrong hash or foreign
    # weights with RuntimeError.
    except (OSError, HTTPException, RuntimeError, StateDictError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"--weights imagenet: cannot load {path} ({reason}); remove it if it is there, fetch {url} and "
            f"put it in {path.parent}, or give --weights none"
        ) from error
