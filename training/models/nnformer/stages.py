"""The encoder and the decoder of nnFormer. Channels come last in all feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import StochasticDepth  # type: ignore[import-untyped]

from cache_schema.vocabulary import MODALITIES
from training.models.nnformer.attention import SkipAttention, VolumeAttention
from training.models.nnformer.windows import Windows
from training.models.patch import Size

NUM_BLOCKS: Final = 2
"""Transformer blocks of a stage; in the second, the windows are shifted."""


@dataclass(frozen=True)
class Level:
    """One resolution.

    Attributes:
        channels: Of its feature maps.
        windows: Volumes that attention is limited to, not shifted.
    """

    channels: int
    windows: Windows


class ChannelsLast(nn.Module):
    """A convolution between layers that want the channels last; nothing is copied for it."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, maps: Float[Tensor, "batch _ _ _ _"]) -> Float[Tensor, "batch _ _ _ _"]:
        """Convolve."""
        convolved: Tensor = self.convolution(maps.movedim(-1, 1)).movedim(1, -1)
        return convolved


def build_stem(width: int, embedding: Size) -> nn.Sequential:
    """Build the four convolutions that turn voxels into tokens.

    Args:
        width: Channels of a token.
        embedding: Voxels of a token along each axis, 2 or 4: the first stride is 2, the second the rest.
    """
    half = width // 2
    depth, height, columns = embedding
    rest = (depth // 2, height // 2, columns // 2)
    return nn.Sequential(
        ChannelsLast(nn.Conv3d(len(MODALITIES), half, 3, stride=2, padding=1)),
        nn.GELU(),
        nn.LayerNorm(half),
        ChannelsLast(nn.Conv3d(half, half, 3, padding=1)),
        nn.GELU(),
        nn.LayerNorm(half),
        ChannelsLast(nn.Conv3d(half, width, 3, stride=rest, padding=1)),
        nn.GELU(),
        nn.LayerNorm(width),
        ChannelsLast(nn.Conv3d(width, width, 3, padding=1)),
        nn.LayerNorm(width),
    )


def build_down(channels: int) -> nn.Sequential:
    """Build the step to half the size and twice the channels."""
    return nn.Sequential(
        nn.GELU(),
        nn.LayerNorm(channels),
        ChannelsLast(nn.Conv3d(channels, 2 * channels, 3, stride=2, padding=1)),
    )


def build_up(channels: int) -> nn.Sequential:
    """Build the step to twice the size and half the channels, of which `channels` are left."""
    return nn.Sequential(
        nn.LayerNorm(2 * channels),
        ChannelsLast(nn.ConvTranspose3d(2 * channels, channels, 2, stride=2)),
    )


class TransformerBlock(nn.Module):
    r"""Attention and a multilayer perceptron, each beside a shortcut and after a norm.

    With one source x, or with the decoder's and the encoder's features x and s,

    $$ y = x + s + \mathrm{MSA}(\mathrm{LN}(x), \mathrm{LN}(s)), \quad z = y + \mathrm{MLP}(\mathrm{LN}(y)) $$

    Args:
        attention: Takes as many maps as the block.
        channels: Of each map.
        drop_path: Probability that a sample skips a branch in training: stochastic depth, Huang et
            al. (2016), arXiv:1603.09382.
    """

    def __init__(self, attention: nn.Module, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = attention
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.drop = StochasticDepth(drop_path, mode="row")

    def forward(
        self, *sources: Float[Tensor, "batch depth height width channel"]
    ) -> Float[Tensor, "batch depth height width channel"]:
        """Transform the only source, or the first one with what it finds in the second."""
        attended = self.attention(*(self.norm(source) for source in sources))
        mixed = sum(sources, start=self.drop(attended))
        transformed: Tensor = mixed + self.drop(self.mlp(mixed))
        return transformed


class Encoder(nn.Module):
    """From the image to one feature map a level.

    Args:
        levels: Fine to coarse, each with twice the channels of the one before.
        embedding: Voxels of a token along each axis.
        num_heads: Of each level.
        drop_path: Of the last block; the first one's is 0, between them it rises evenly.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        embedding: Size,
        num_heads: Sequence[int],
        drop_path: float,
    ) -> None:
        super().__init__()
        rates = rising_rates(len(levels), drop_path)
        self.entries = nn.ModuleList(
            [build_stem(levels[0].channels, embedding)]
            + [build_down(level.channels) for level in levels[:-1]]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                self_block(level.channels, level.windows, heads, first),
                self_block(level.channels, level.windows.half_shifted(), heads, second),
            )
            for level, heads, (first, second) in zip(levels, num_heads, rates, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(level.channels) for level in levels)

    def forward(
        self, image: Float[Tensor, "batch modality depth height width"]
    ) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Encode; the features are returned fine to coarse."""
        maps = image.movedim(1, -1)
        features = []
        for entry, stage, norm in zip(self.entries, self.stages, self.norms, strict=True):
            maps = stage(entry(maps))
            features.append(norm(maps))
        return features


class DecoderStage(nn.Module):
    """Twice the size, skip attention, and self-attention in shifted windows."""

    def __init__(self, level: Level, num_heads: int, drop_path: tuple[float, float]) -> None:
        super().__init__()
        self.up = build_up(level.channels)
        attention = SkipAttention(level.channels, level.windows, num_heads)
        self.join = TransformerBlock(attention, level.channels, drop_path[0])
        shifted = level.windows.half_shifted()
        self.refine = self_block(level.channels, shifted, num_heads, drop_path[1])

    def forward(
        self,
        coarse: Float[Tensor, "batch _ _ _ _"],
        skip: Float[Tensor, "batch depth height width channel"],
    ) -> Float[Tensor, "batch depth height width channel"]:
        """Decode one stage."""
        decoded: Tensor = self.refine(self.join(self.up(coarse), skip))
        return decoded


class Decoder(nn.Module):
    """From the features of all levels back to those of the finest.

    Args:
        levels: Those that it leads to, fine to coarse.
        num_heads: Of each of them.
        drop_path: Of the last block; the first one's is 0, between them it rises evenly.
    """

    def __init__(self, levels: Sequence[Level], num_heads: Sequence[int], drop_path: float) -> None:
        super().__init__()
        rates = rising_rates(len(levels), drop_path)
        self.stages = nn.ModuleList(
            DecoderStage(level, heads, rate)
            for level, heads, rate in zip(levels[::-1], num_heads[::-1], rates, strict=True)
        )

    def forward(
        self, features: Sequence[Float[Tensor, "batch _ _ _ _"]]
    ) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Decode features, fine to coarse, into the outputs of all stages, coarse to fine."""
        *skips, maps = features
        outputs = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            maps = stage(maps, skip)
            outputs.append(maps)
        return outputs


def self_block(
    channels: int, windows: Windows, num_heads: int, drop_path: float
) -> TransformerBlock:
    """Build a block in which every token looks around itself."""
    attention = VolumeAttention(channels, windows, num_heads)
    return TransformerBlock(attention, channels, drop_path)


def rising_rates(num_stages: int, last: float) -> list[tuple[float, float]]:
    """Spread the probabilities of stochastic depth over the blocks of all stages, from 0 to `last`."""
    num_blocks = NUM_BLOCKS * num_stages
    rates = [last * block / (num_blocks - 1) for block in range(num_blocks)]
    return list(zip(rates[::NUM_BLOCKS], rates[1::NUM_BLOCKS], strict=True))
