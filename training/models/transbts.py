"""TransBTS, a 3D U-Net with a transformer at its bottom: Wang et al. (2021), arXiv:2103.04430.

Where the paper is silent (kinds of normalisation, biases, dropout) this follows the authors' own
program, github.com/Rubics-Xuan/TransBTS, with these differences:

- Parameters that training cannot move are left out, 264,544 of the published 32.99 million: a linear
  embedding and a last LayerNorm that do not reach the output, and biases of convolutions that
  BatchNorm alone reads, which subtracts them again.
- Channels of the first convolution are dropped in training; there in evaluation too.
- Every class is a plane with its own sigmoid, applied later; there a softmax over four classes.
"""

import math
from itertools import pairwise
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cache_schema.vocabulary import MODALITIES
from training.models.attention_heads import require_equal_heads
from training.models.logits import Logits
from training.models.patch import refuse, require_size

TINY: Final[dict[str, Any]] = {
    "channels": (4, 8, 8, 16),
    "num_groups": 2,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "hidden": 64,
}
"""Options of a network small enough for tests."""

STRIDE: Final = 8
"""Voxels of the image along one side of a token."""

SMALLEST_SIDE: Final = 2 * STRIDE
"""Of a window: 8 x 8 x 8 would be a single token, too little for BatchNorm in training."""


class EncoderBlock(nn.Module):
    r"""Two convolutions of normalised features, added to what came in.

    $$ y = x + W_2 \, \mathrm{ReLU}(\mathrm{GN}(W_1 \, \mathrm{ReLU}(\mathrm{GN}(x)))) $$

    He et al. (2016), arXiv:1603.05027, with the norm of Wu and He (2018), arXiv:1803.08494.

    Args:
        channels: Of input and output, a multiple of `num_groups`.
        num_groups: Groups of channels that are normalised apart; fewer than `channels`, else the
            bias of $W_1$ is lost.
        has_last_bias: Whether $W_2$ has a bias; False where BatchNorm alone reads the output.
    """

    def __init__(self, channels: int, num_groups: int, *, has_last_bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(num_groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, kernel_size=3, padding=1),
            nn.GroupNorm(num_groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, kernel_size=3, padding=1, bias=has_last_bias),
        )

    def forward(
        self, features: Float[Tensor, "batch channel depth height width"]
    ) -> Float[Tensor, "batch channel depth height width"]:
        """Refine features."""
        refined: Tensor = features + self.layers(features)
        return refined


class Encoder(nn.Module):
    """Local features at four sizes, each half as large as the one before.

    Args:
        channels: At full, half, quarter and eighth size.
        num_groups: Of every GroupNorm.
        dropout: Probability of zeroing a whole channel of the first convolution.
    """

    def __init__(self, channels: tuple[int, ...], num_groups: int, dropout: float) -> None:
        super().__init__()
        full, half, quarter, eighth = channels
        self.stages = nn.ModuleList(
            (
                nn.Sequential(
                    nn.Conv3d(len(MODALITIES), full, kernel_size=3, padding=1),
                    nn.Dropout3d(dropout),
                    EncoderBlock(full, num_groups),
                ),
                nn.Sequential(
                    halve(full, half), *(EncoderBlock(half, num_groups) for _ in range(2))
                ),
                nn.Sequential(
                    halve(half, quarter), *(EncoderBlock(quarter, num_groups) for _ in range(2))
                ),
                nn.Sequential(
                    halve(quarter, eighth),
                    *(EncoderBlock(eighth, num_groups) for _ in range(3)),
                    EncoderBlock(eighth, num_groups, has_last_bias=False),
                ),
            )
        )

    def forward(
        self, image: Float[Tensor, "batch 4 depth height width"]
    ) -> list[Float[Tensor, "batch _ _ _ _"]]:
        """Compute the features of all sizes, fine to coarse."""
        features = [image]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def halve(in_channels: int, out_channels: int) -> nn.Conv3d:
    """Build the convolution that halves every side."""
    return nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


class TransformerLayer(nn.Module):
    r"""Attention over all tokens, then a perceptron for each of them.

    $$ y = x + W_o \, \mathrm{MHA}(\mathrm{LN}(x)), \quad z = y + \mathrm{MLP}(\mathrm{LN}(y)) $$

    Vaswani et al. (2017), arXiv:1706.03762, normalised first as in Xiong et al. (2020),
    arXiv:2002.04745. Queries, keys and values have no bias; torch's `TransformerEncoderLayer` cannot
    leave out these alone.

    Args:
        width: Length of a token, a multiple of `num_heads`.
        num_heads: Of the attention.
        hidden: Width of the perceptron inside.
        dropout: Probability of zeroing an attention weight, or an element of the perceptron.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        require_equal_heads(width, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        # The authors' program drops out twice in a row here, which is once with this probability.
        self.output = nn.Sequential(nn.Linear(width, width), nn.Dropout(1 - (1 - dropout) ** 2))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(
        self, tokens: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Let the tokens look at each other."""
        attended = tokens + self.output(self.attend(self.norm(tokens)))
        mixed: Tensor = attended + self.mlp(attended)
        return mixed

    def attend(
        self, tokens: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Attend with every head and put what they find side by side."""
        heads = self.query_key_value(tokens).unflatten(2, (3, self.num_heads, -1))
        query, key, value = heads.transpose(1, 3).unbind(2)
        found = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )
        return found.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """Transformer layers over tokens that know their place.

    The position embedding is learned, one vector for each token, from zero on.

    Args:
        num_tokens: Of a window.
        width: Length of a token.
        num_layers: How many layers follow each other.
        num_heads: See `TransformerLayer`.
        hidden: See `TransformerLayer`.
        dropout: See `TransformerLayer`; also of the embedded tokens.
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        *,
        num_layers: int,
        num_heads: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(num_tokens, width))
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            *(TransformerLayer(width, num_heads, hidden, dropout) for _ in range(num_layers)),
        )

    def forward(
        self, tokens: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """Relate all tokens of a window."""
        related: Tensor = self.layers(tokens + self.position)
        return related


class Bottleneck(nn.Module):
    """Global features at an eighth of the size: to tokens, through the transformer and back.

    Args:
        channels: Of input and output.
        width: Length of a token.
        transformer: Relates tokens of that length.
    """

    def __init__(self, channels: int, width: int, transformer: Transformer) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, width, kernel_size=3, padding=1),
        )
        self.transformer = transformer
        self.reduce = normalised_convolutions(width, channels)
        self.refine = normalised_convolutions(channels, channels)

    def forward(
        self, features: Float[Tensor, "batch channel depth height width"]
    ) -> Float[Tensor, "batch channel depth height width"]:
        """Add to every place what the whole window tells about it."""
        embedded = self.embed(features)
        tokens = self.transformer(embedded.flatten(2).transpose(1, 2))
        reduced = self.reduce(tokens.transpose(1, 2).unflatten(2, embedded.shape[2:]))
        refined: Tensor = reduced + self.refine(reduced)
        return refined


def normalised_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build two convolutions, each with BatchNorm and ReLU behind it."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
    )


class DecoderStage(nn.Module):
    """Twice the size, joined with the encoder's features of that size.

    Args:
        in_channels: Of the coarse features.
        out_channels: Of the encoder's features and of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enlarge = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, kernel_size=1),
            nn.ConvTranspose3d(out_channels, out_channels, kernel_size=2, stride=2),
        )
        self.join = nn.Conv3d(2 * out_channels, out_channels, kernel_size=1)
        self.refine = normalised_convolutions(out_channels, out_channels)

    def forward(
        self,
        coarse: Float[Tensor, "batch in_channel depth height width"],
        skip: Float[Tensor, "batch out_channel 2*depth 2*height 2*width"],
    ) -> Float[Tensor, "batch out_channel 2*depth 2*height 2*width"]:
        """Decode one stage."""
        joined = self.join(torch.cat((skip, self.enlarge(coarse)), dim=1))
        refined: Tensor = joined + self.refine(joined)
        return refined


class TransBTS(nn.Module):
    """Segment windows of a volume: convolutions see what is near, a transformer what is far.

    Args:
        num_classes: Planes of the output, each with its own sigmoid.
        patch: Depth, height and width of every window; each place in it has its own embedding.
        channels: Of the features at full, half, quarter and eighth size.
        num_groups: Groups of channels that the encoder normalises apart.
        width: Length of a token.
        num_layers: Of the transformer.
        num_heads: Of its attention.
        hidden: Width of the perceptron in each of its layers.
        dropout: Probability of zeroing an element inside the transformer.
        stem_dropout: Probability of zeroing a whole channel of the first convolution.

    Raises:
        InputError: If the network cannot take such windows.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        patch: tuple[int, int, int] = (128, 128, 128),
        channels: tuple[int, ...] = (16, 32, 64, 128),
        num_groups: int = 8,
        width: int = 512,
        num_layers: int = 4,
        num_heads: int = 8,
        hidden: int = 4096,
        dropout: float = 0.1,
        stem_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_patch(patch)
        self.patch = patch
        self.encoder = Encoder(channels, num_groups, stem_dropout)
        transformer = Transformer(
            math.prod(side // STRIDE for side in patch),
            width,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden=hidden,
            dropout=dropout,
        )
        self.bottleneck = Bottleneck(channels[-1], width, transformer)
        self.decoder = nn.ModuleList(
            DecoderStage(coarse, fine) for fine, coarse in reversed(list(pairwise(channels)))
        )
        self.final = nn.Conv3d(channels[0], num_classes, kernel_size=1)

    def forward(self, image: Float[Tensor, "batch 4 depth height width"]) -> Logits:
        """Segment windows.

        Args:
            image: Modalities in the order of `MODALITIES`, each z-scored.

        Returns:
            Logits at the size of the image.

        Raises:
            ValueError: If the windows are not of the size that the network was built for.
        """
        require_size(image, self.patch)
        *skips, deepest = self.encoder(image)
        decoded = self.bottleneck(deepest)
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            decoded = stage(decoded, skip)
        return Logits(self.final(decoded))


def check_patch(patch: tuple[int, int, int]) -> None:
    """Refuse patches that cannot be halved three times."""
    if any(side % STRIDE or side < SMALLEST_SIDE for side in patch):
        raise refuse("transbts", patch, f"multiples of {STRIDE}, {SMALLEST_SIDE} or more")
