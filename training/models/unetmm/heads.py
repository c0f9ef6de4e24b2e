"""Segmentation heads of all scales and their final combination (paper, sections 2.4.3 and 2.5)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from training.models.logits import SCALE_RATIOS, Logits
from training.models.unetmm.decoder import DECODER_CHANNELS


def segmentation_head(channels: int, num_classes: int) -> nn.Sequential:
    """Build f_seg of equation 15: three 3x3 convolutions, ReLU and BatchNorm between them."""
    hidden = channels // 2
    return nn.Sequential(
        nn.Conv2d(channels, hidden, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, num_classes, kernel_size=3, padding=1),
    )


class Heads(nn.Module):
    """One head a decoder output, equation 14, and a 1x1 convolution over all of them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            segmentation_head(channels, num_classes) for channels in DECODER_CHANNELS
        )
        self.final = nn.Conv2d(len(DECODER_CHANNELS) * num_classes, num_classes, kernel_size=1)

    def forward(self, decoded: Sequence[Float[Tensor, "batch _ _ _"]]) -> Logits:
        """Predict at every scale and from all scales together.

        Args:
            decoded: D_7 to D_1, coarse to fine.
        """
        height, width = decoded[-1].shape[-2:]
        scales = tuple(
            functional.interpolate(
                head(output), size=(height, width), mode="bilinear", align_corners=False
            )
            for head, output in zip(self.scales, decoded, strict=True)
        )
        return Logits(self.final(torch.cat(scales, dim=1)), scales, SCALE_RATIOS)
