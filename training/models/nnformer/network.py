"""The whole network."""

from typing import Any, Final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from training.models.logits import Logits
from training.models.nnformer.stages import Decoder, Encoder, Level
from training.models.nnformer.windows import Windows
from training.models.patch import Size, refuse, require_size, spell

NUM_LEVELS: Final = 4

NUM_LOCAL: Final = 2
"""Attention is local at this many fine levels and global at the coarse ones, the bottleneck."""

LOCAL_WINDOW: Final[Size] = (4, 4, 4)
"""Tokens of a local volume; it tiles the local levels of every patch that is not refused."""

RATIOS: Final[tuple[float, ...]] = (1 / 4, 1 / 2)
"""Weights of the auxiliary predictions, coarse to fine: they halve with the resolution."""

TINY: Final[dict[str, Any]] = {
    "width": 6,
    "embedding": (2, 2, 2),
    "encoder_heads": (1, 2, 2, 3),
    "decoder_heads": (2, 2, 3),
    "drop_path": 0.0,
}
"""Options of a network for tests, for patches from 32x32x32 on."""

SYNAPSE: Final[dict[str, Any]] = {
    "width": 192,
    "embedding": (2, 4, 4),
    "encoder_heads": (6, 12, 24, 48),
    "decoder_heads": (6, 12, 24),
}
"""Options of the variant for the Synapse data set, which tables of brain tumour results quote."""


class NnFormer(nn.Module):
    """A U-shaped 3D transformer: local attention at the ends, global attention in the bottleneck.

    Zhou et al. (2023), "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE
    Transactions on Image Processing 32, 4036-4045, arXiv:2109.03201, as its authors configure it for
    brain tumours (github.com/282857341/nnFormer). In the bottleneck a window is as large as the map,
    whatever the patch. Of the reference's position biases most can never be looked up, because
    several differences of position share one; here each has its own.

    Args:
        num_classes: Planes of the output, each with its own sigmoid.
        patch: Depth, height and width of the volumes; the position biases and masks fit no others.
        width: Channels of the finest level; every coarser one has twice as many.
        embedding: Voxels of a token along each axis, 2 or 4.
        encoder_heads: Attention heads of the encoder's four stages, fine to coarse.
        decoder_heads: Attention heads of the decoder's three stages, fine to coarse.
        drop_path: Probability of stochastic depth in the last block of encoder and decoder.
        deep_supervision: Predict at the two coarser stages of the decoder too, in training, as the
            authors do for Synapse; for tumours they do not.

    Raises:
        InputError: If the patch does not divide into tokens at every level, or if only one would be
            left at the coarsest, which could learn no attention; give another patch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        patch: Size = (128, 128, 128),
        width: int = 96,
        embedding: Size = (4, 4, 4),
        encoder_heads: tuple[int, ...] = (3, 6, 12, 24),
        decoder_heads: tuple[int, ...] = (6, 12, 24),
        drop_path: float = 0.2,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        refuse_patch(patch, embedding)
        self.patch = patch
        levels = plan_levels(patch, width, embedding)
        self.encoder = Encoder(levels, embedding, encoder_heads, drop_path)
        self.decoder = Decoder(levels[:-1], decoder_heads, drop_path)
        finest, *coarser = (
            nn.ConvTranspose3d(level.channels, num_classes, embedding, stride=embedding)
            for level in levels[:-1]
        )
        self.final = finest
        self.auxiliary = nn.ModuleList(reversed(coarser) if deep_supervision else ())

    def forward(self, image: Float[Tensor, "batch 4 depth height width"]) -> Logits:
        """Segment volumes.

        Args:
            image: Modalities in the order of `MODALITIES`, each z-scored.

        Returns:
            Logits at the size of the image.

        Raises:
            ValueError: If the volumes are not of the size that the network was built for.
        """
        require_size(image, self.patch)
        *coarse, finest = (maps.movedim(-1, 1) for maps in self.decoder(self.encoder(image)))
        final = self.final(finest)
        if not (self.training and self.auxiliary):
            return Logits(final)
        scales = tuple(
            functional.interpolate(head(maps), size=self.patch, mode="trilinear")
            for head, maps in zip(self.auxiliary, coarse, strict=True)
        )
        return Logits(final, scales, RATIOS)


def refuse_patch(patch: Size, embedding: Size) -> None:
    """Refuse a patch whose coarsest feature map has no whole number of tokens, or a single one."""
    strides = [side * 2 ** (NUM_LEVELS - 1) for side in embedding]
    cuts = [divmod(side, stride) for side, stride in zip(patch, strides, strict=True)]
    if any(rest for _, rest in cuts) or max(count for count, _ in cuts) < 2:
        raise refuse(
            "nnformer", patch, f"multiples of {spell(strides)}, at least one side twice as long"
        )


def plan_levels(patch: Size, width: int, embedding: Size) -> list[Level]:
    """Plan channels and windows of every level, fine to coarse."""
    levels = []
    for level in range(NUM_LEVELS):
        depth, height, columns = (
            side // (step * 2**level) for side, step in zip(patch, embedding, strict=True)
        )
        size = (depth, height, columns)
        window = LOCAL_WINDOW if level < NUM_LOCAL else size
        levels.append(Level(width * 2**level, Windows(size, window)))
    return levels
