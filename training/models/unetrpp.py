"""UNETR++: a 3D U-Net whose levels attend to positions and to channels with one query and key."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cache_schema.vocabulary import MODALITIES
from training.models.attention_heads import require_equal_heads
from training.models.logits import Logits
from training.models.patch import refuse, require_size

NUM_MODALITIES: Final = len(MODALITIES)

STEM_STRIDE: Final = 4
"""Voxels along one side of a position of the finest level; every further level doubles it."""

RATIOS: Final[tuple[float, ...]] = (1 / 4, 1 / 2)
"""Weights of the predictions at an eighth and a quarter of the image's sides, beside 1 of the final."""

TINY: Final[dict[str, Any]] = {
    "channels": (8, 16, 32),
    "projections": (8, 8, 8),
    "blocks": 1,
    "num_heads": 2,
}
"""Options of a network for tests, whose patches may be as small as 32 x 32 x 32."""


class UNETRPP(nn.Module):
    """A U-Net whose encoder and decoder levels are blocks of efficient paired attention.

    Shaker et al. (2024), arXiv:2212.04497, doi:10.1109/TMI.2024.3398728, as configured for BraTS in
    the authors' code, github.com/Amshaker/unetr_plus_plus. It divides queries by their length over
    all positions and learns the temperature of both softmaxes where the paper divides by the root of
    the channels; so does this. Its heads of spatial attention are put together in a wrong order
    (confirmed by the authors in their issue 62); these follow the paper.

    Args:
        num_classes: Planes of the output, each with its own sigmoid.
        patch: Depth, height and width of the images; the number of parameters depends on it.
        channels: Of every level, fine to coarse, at least three; each a multiple of the one before
            and of `num_heads`.
        projections: To how many positions keys and values shrink at every level.
        blocks: Attention blocks of every level of the encoder and of the decoder.
        num_heads: Attention heads of every block.
        dropout: Probability of zeroing an attention weight, or a channel between convolutions.

    Raises:
        InputError: If the patch cannot be halved down to the coarsest level; give another one.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        patch: tuple[int, int, int] = (128, 128, 128),
        channels: tuple[int, ...] = (32, 64, 128, 256),
        projections: tuple[int, ...] = (64, 64, 64, 32),
        blocks: int = 3,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        levels = plan_levels(patch, channels, projections)
        self.patch = patch
        options: dict[str, Any] = {"blocks": blocks, "num_heads": num_heads, "dropout": dropout}
        width = channels[0] // 2
        self.encoder = Encoder(levels, **options)
        self.decoder = Decoder(levels, **options)
        self.full_size = ResidualBlock(NUM_MODALITIES, width, nn.InstanceNorm3d)
        self.upsample = nn.ConvTranspose3d(
            channels[0], width, kernel_size=STEM_STRIDE, stride=STEM_STRIDE, bias=False
        )
        self.refine = ResidualBlock(width, width, nn.InstanceNorm3d)
        self.final = nn.Conv3d(width, num_classes, kernel_size=1)
        self.scales = nn.ModuleList(
            nn.Conv3d(channels[level], num_classes, kernel_size=1) for level in (1, 0)
        )

    def forward(self, image: Float[Tensor, "batch 4 depth height width"]) -> Logits:
        """Segment volumes of the size of the patch.

        Args:
            image: Modalities in the order of `MODALITIES`, each z-scored.

        Returns:
            Logits at the size of the image; in training also those of the two finest levels.

        Raises:
            ValueError: If the image has another size; embeddings and projections are of the patch.
        """
        require_size(image, self.patch)
        decoded = self.decoder(self.encoder(image))
        final = self.final(self.refine(self.upsample(decoded[-1]) + self.full_size(image)))
        if not self.training:
            return Logits(final)
        scales = tuple(
            functional.interpolate(head(features), size=image.shape[2:], mode="trilinear")
            for head, features in zip(self.scales, decoded[-2:], strict=True)
        )
        return Logits(final, scales, RATIOS)


class Level(NamedTuple):
    """What the attention of one level works on.

    Attributes:
        channels: Length of a position's vector.
        positions: Of the whole patch at this level.
        projection: To how many of them keys and values shrink.
    """

    channels: int
    positions: int
    projection: int


def plan_levels(
    patch: tuple[int, int, int], channels: Sequence[int], projections: Sequence[int]
) -> list[Level]:
    """Compute the sizes of every level, fine to coarse.

    Raises:
        InputError: If a side of the patch is no multiple of the coarsest stride, or if a single
            position would be left there, which has no batch statistics; give another patch.
    """
    strides = [STEM_STRIDE * 2**level for level in range(len(channels))]
    coarsest = strides[-1]
    if any(side % coarsest for side in patch) or math.prod(patch) < 2 * coarsest**3:
        raise refuse(
            "unetrpp",
            patch,
            f"multiples of {coarsest}, at least one of them {2 * coarsest} or more",
        )
    return [
        Level(width, math.prod(patch) // stride**3, projection)
        for width, stride, projection in zip(channels, strides, projections, strict=True)
    ]


class Encoder(nn.Module):
    """From the image to the features of every level, at a quarter of its sides and coarser."""

    def __init__(
        self, levels: Sequence[Level], *, blocks: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [NUM_MODALITIES, *(level.channels for level in levels)]
        strides = [STEM_STRIDE, *(2 for _ in levels[1:])]
        self.downsample = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(fine, coarse, kernel_size=stride, stride=stride, bias=False),
                nn.GroupNorm(fine, coarse),
            )
            for fine, coarse, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.stages = nn.ModuleList(
            attention_stage(level, blocks=blocks, num_heads=num_heads, dropout=dropout)
            for level in levels
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):  # the published start, of the encoder alone
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(
        self, image: Float[Tensor, "batch 4 depth height width"]
    ) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Encode, fine to coarse."""
        outputs = [image]
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            outputs.append(stage(downsample(outputs[-1])))
        return outputs[1:]


class Decoder(nn.Module):
    """From the coarsest level back to the finest, adding the encoder's features of each."""

    def __init__(
        self, levels: Sequence[Level], *, blocks: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        upwards = list(reversed(levels))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(coarse.channels, fine.channels, kernel_size=2, stride=2, bias=False)
            for coarse, fine in pairwise(upwards)
        )
        self.stages = nn.ModuleList(
            attention_stage(level, blocks=blocks, num_heads=num_heads, dropout=dropout)
            for level in upwards[1:]
        )

    def forward(
        self, encoded: Sequence[Float[Tensor, "batch _ _ _ _"]]
    ) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Decode.

        Args:
            encoded: The encoder's features, fine to coarse.

        Returns:
            The decoder's features, coarse to fine, without the coarsest level.
        """
        *skips, coarse = encoded
        outputs = [coarse]
        for upsample, stage, skip in zip(self.upsample, self.stages, reversed(skips), strict=True):
            outputs.append(stage(upsample(outputs[-1]) + skip))
        return outputs[1:]


def attention_stage(level: Level, *, blocks: int, num_heads: int, dropout: float) -> nn.Sequential:
    """Build the blocks of one level."""
    return nn.Sequential(
        *(AttentionBlock(level, num_heads=num_heads, dropout=dropout) for _ in range(blocks))
    )


class AttentionBlock(nn.Module):
    """Paired attention, then convolutions, each added to what came in.

    Every block learns its own position embedding. Attention starts with almost no weight
    (layer scale, Touvron et al. (2021), arXiv:2103.17239), so that a new block is a convolution.
    """

    def __init__(self, level: Level, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        channels = level.channels
        self.position = nn.Parameter(torch.zeros(level.positions, channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = PairedAttention(level, num_heads=num_heads, dropout=dropout)
        self.gain = nn.Parameter(torch.full((channels,), 1e-6))
        self.mix = nn.Sequential(
            ResidualBlock(channels, channels, nn.BatchNorm3d),
            nn.Dropout3d(dropout),
            nn.Conv3d(channels, channels, kernel_size=1),
        )

    def forward(
        self, features: Float[Tensor, "batch channel depth height width"]
    ) -> Float[Tensor, "batch channel depth height width"]:
        """Attend and mix neighbours."""
        tokens = features.flatten(2).transpose(1, 2) + self.position
        tokens = tokens + self.gain * self.attention(self.norm(tokens))
        attended = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        mixed: Tensor = attended + self.mix(attended)
        return mixed


class PairedAttention(nn.Module):
    r"""Efficient paired attention: over positions and over channels, with shared queries and keys.

    With columns of Q and K of unit length, written with a hat, a projection P from all positions
    to few, the same for keys and values, and one learned temperature a head and branch,

    $$ X_s = \mathrm{softmax}(t_s \hat Q (P^T K)^T) P^T V_s, \quad
       X_c = V_c \, \mathrm{softmax}(t_c \hat Q^T \hat K)^T $$

    in every head, and the result is their sum. Memory is linear in the positions, as in Linformer:
    Wang et al. (2020), arXiv:2006.04768; attention over channels is that of XCiT: El-Nouby et al.
    (2021), arXiv:2106.09681.
    """

    def __init__(self, level: Level, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        require_equal_heads(level.channels, num_heads)
        self.num_heads = num_heads
        self.query_key_values = nn.Linear(level.channels, 4 * level.channels, bias=False)
        self.projection = nn.Parameter(torch.empty(level.positions, level.projection))
        bound = 1 / math.sqrt(level.projection)
        nn.init.uniform_(self.projection, -bound, bound)
        self.channel_temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.spatial_temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "batch position channel"]
    ) -> Float[Tensor, "batch position channel"]:
        """Attend; a head is a run of neighbouring channels."""
        parts = self.query_key_values(tokens).unflatten(2, (4, self.num_heads, -1))
        query, key, channel_value, spatial_value = parts.permute(2, 0, 3, 1, 4)
        query = functional.normalize(query, dim=2)
        found = self.attend_to_channels(query, functional.normalize(key, dim=2), channel_value)
        found = found + self.attend_to_positions(query, key, spatial_value)
        merged: Tensor = found.transpose(1, 2).flatten(2)
        return merged

    def attend_to_channels(
        self,
        query: Float[Tensor, "batch head position channel"],
        key: Float[Tensor, "batch head position channel"],
        value: Float[Tensor, "batch head position channel"],
    ) -> Float[Tensor, "batch head position channel"]:
        """Mix the channels of a head by how alike they are over all positions."""
        score = query.transpose(2, 3) @ key * self.channel_temperature
        share = self.dropout(score.softmax(dim=-1))
        found: Tensor = value @ share.transpose(2, 3)
        return found

    def attend_to_positions(
        self,
        query: Float[Tensor, "batch head position channel"],
        key: Float[Tensor, "batch head position channel"],
        value: Float[Tensor, "batch head position channel"],
    ) -> Float[Tensor, "batch head position channel"]:
        """Look up the few positions that keys and values are projected to."""
        return functional.scaled_dot_product_attention(
            query * self.spatial_temperature,
            self.projection.T @ key,
            self.projection.T @ value,
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=1.0,
        )


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut, normalised by batch or by volume."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: type[nn.BatchNorm3d] | type[nn.InstanceNorm3d],
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            norm(out_channels),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            norm(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False),
                norm(out_channels),
            )

    def forward(
        self, features: Float[Tensor, "batch in_channel depth height width"]
    ) -> Float[Tensor, "batch out_channel depth height width"]:
        """Convolve; the size stays."""
        return functional.leaky_relu(self.body(features) + self.shortcut(features))
