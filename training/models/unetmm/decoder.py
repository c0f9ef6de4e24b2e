"""The decoder over the fused skip connections (paper, sections 2.4.2 and 2.5)."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SKIP_CHANNELS: Final[tuple[int, ...]] = (256, 128, 64, 64)
"""Channels of G_6, G_5, G_4, G_2, the skip connections from coarse to fine."""

DECODER_CHANNELS: Final[tuple[int, ...]] = (512, 256, 128, 64, 64, 128)
"""Channels of the decoder outputs D_7 to D_1, coarse to fine; D_7 is G_7 itself."""


class DecoderStage(nn.Module):
    r"""Twice the size, joined with a skip connection, equations 12 and 13.

    $$ D_d = \mathrm{BN}(\mathrm{ReLU}(W [G_d; \mathrm{up}(D_{d+1})])) $$
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels + skip_channels, out_channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(
        self,
        coarse: Float[Tensor, "batch in_channel rows columns"],
        skip: Float[Tensor, "batch skip_channel 2*rows 2*columns"] | None,
    ) -> Float[Tensor, "batch out_channel 2*rows 2*columns"]:
        """Decode one stage; the last one, at the size of the image, has no skip connection."""
        joined = functional.interpolate(
            coarse, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        if skip is not None:
            joined = torch.cat((skip, joined), dim=1)
        decoded: Tensor = self.norm(functional.relu(self.conv(joined)))
        return decoded


class Decoder(nn.Module):
    """From the fused features of all levels to the six decoder outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            DecoderStage(coarse, skip, fine)
            for coarse, skip, fine in zip(
                DECODER_CHANNELS[:-1], (*SKIP_CHANNELS, 0), DECODER_CHANNELS[1:], strict=True
            )
        )

    def forward(
        self, fused: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> list[Float[Tensor, "batch _ _ _"]]:
        """Decode.

        Args:
            fused: G_7, G_6, G_5, G_4, G_2.

        Returns:
            D_7 to D_1, coarse to fine, the last at the size of the image.
        """
        deepest, *skips = fused
        outputs = [deepest]
        for stage, skip in zip(self.stages, (*skips, None), strict=True):
            outputs.append(stage(outputs[-1], skip))
        return outputs
