"""Sinusoidal position embeddings (paper, equation 7 and section 3.2.1)."""

import math
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Position = Literal["none", "2d", "3d", "2d+3d"]

NUM_AXES: Final[dict[Position, tuple[int, ...]]] = {
    "none": (),
    "2d": (2,),
    "3d": (3,),
    "2d+3d": (2, 3),
}
"""The grids whose embeddings are summed: rows and columns, or modalities, rows and columns."""


def sinusoid(
    length: int, channels: int, device: torch.device
) -> Float[Tensor, "{length} {channels}"]:
    r"""Embed the positions along one axis.

    $$ PE_{p, 2i} = \sin(p / 10000^{2i/c}), \quad PE_{p, 2i+1} = \cos(p / 10000^{2i/c}) $$

    Vaswani et al. (2017), arXiv:1706.03762, section 3.5.

    Args:
        length: Positions run from 0 to `length - 1`.
        channels: An even number, c in the formula.
        device: Where to compute.

    Returns:
        One row a position, sines and cosines interleaved.
    """
    exponent = torch.arange(0, channels, 2, device=device) / channels
    frequency = torch.exp(-math.log(10000.0) * exponent)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


def grid_sinusoid(
    shape: tuple[int, ...], channels: int, device: torch.device
) -> Float[Tensor, "*grid {channels}"]:
    """Embed every point of a grid: each axis has its own share of the channels.

    The shares are equal and even, therefore rounded up, and what is too much is cut off at the end:
    64 channels over three axes are 22 + 22 + 20.

    Args:
        shape: Points along each axis.
        channels: Length of a point's embedding.
        device: Where to compute.

    Returns:
        The grid, with the embedding as its last axis.
    """
    share = 2 * math.ceil(channels / (2 * len(shape)))
    parts = []
    for axis, length in enumerate(shape):
        aligned = [length if other == axis else 1 for other in range(len(shape))]
        parts.append(sinusoid(length, share, device).view(*aligned, share).expand(*shape, share))
    return torch.cat(parts, dim=-1)[..., :channels]


class PositionEmbedding(nn.Module):
    """Add where it is, and for `3d` which modality it is, to every feature vector.

    Nothing is learned or stored: the embedding follows from the shape of the features.

    Attributes:
        kind: `2d` is the same for all modalities; in `3d` the modalities are the depth axis;
            `2d+3d` adds both; `none` adds nothing.
    """

    def __init__(self, kind: Position) -> None:
        super().__init__()
        self.kind = kind
        self.num_axes = NUM_AXES[kind]

    def forward(
        self, features: Float[Tensor, "batch modality channel rows columns"]
    ) -> Float[Tensor, "batch modality channel rows columns"]:
        """Return the features with their positions added, in the features' own precision."""
        _, modality, channels, rows, columns = features.shape
        for num_axes in self.num_axes:
            shape = (modality, rows, columns)[-num_axes:]
            embedding = grid_sinusoid(shape, channels, features.device)
            features = features + embedding.movedim(-1, -3).to(features.dtype)
        return features
