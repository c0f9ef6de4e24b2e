"""Local volumes of a feature map: cut it, put it together, and say who may see whom.

Windows that are shifted in every second block: Liu et al. (2021), arXiv:2103.14030, here in three
dimensions.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.models.patch import Size


@dataclass(frozen=True)
class Windows:
    """How a feature map is cut into volumes.

    Attributes:
        size: Of the map, a multiple of `window`.
        window: Size of one volume.
        shift: How far all volumes are moved towards the end of each axis, less than `window`. What
            is before the first is then cut off from what is after the last, although both are held
            in one volume.
    """

    size: Size
    window: Size
    shift: Size = (0, 0, 0)

    def half_shifted(self) -> "Windows":
        """Move by half a window, except along an axis where one window covers the map."""
        depth, height, width = (
            window // 2 if window < side else 0
            for side, window in zip(self.size, self.window, strict=True)
        )
        return replace(self, shift=(depth, height, width))

    def split(
        self, maps: Float[Tensor, "batch depth height width channel"]
    ) -> Float[Tensor, "batch window token channel"]:
        """Cut a map into volumes, and those into tokens, both in the order of depth, height, width."""
        if any(self.shift):
            maps = maps.roll([-shift for shift in self.shift], dims=(1, 2, 3))
        return partition(maps, self.window)

    def join(
        self, tokens: Float[Tensor, "batch window token channel"]
    ) -> Float[Tensor, "batch depth height width channel"]:
        """Undo `split`."""
        maps = assemble(tokens, self.size, self.window)
        return maps.roll(self.shift, dims=(1, 2, 3)) if any(self.shift) else maps

    def together(self) -> Bool[Tensor, "window token token"]:
        """Tell which tokens of a volume are neighbours in the map too, and may see each other."""
        ends = [
            torch.arange(side) >= side - shift
            for side, shift in zip(self.size, self.shift, strict=True)
        ]
        came_round = torch.stack(torch.meshgrid(*ends, indexing="ij"), dim=-1)
        flags = partition(came_round.float()[None], self.window)[0]
        return (flags[:, :, None] == flags[:, None, :]).all(dim=-1)


def partition(
    maps: Float[Tensor, "batch depth height width channel"], window: Size
) -> Float[Tensor, "batch window token channel"]:
    """Cut a map into windows that tile it."""
    depth, height, width = window
    cut = maps.unflatten(3, (-1, width)).unflatten(2, (-1, height)).unflatten(1, (-1, depth))
    ordered = cut.permute(0, 1, 3, 5, 2, 4, 6, 7)
    tokens: Tensor = ordered.flatten(4, 6).flatten(1, 3)
    return tokens


def assemble(
    tokens: Float[Tensor, "batch window token channel"], size: Size, window: Size
) -> Float[Tensor, "batch depth height width channel"]:
    """Undo `partition`."""
    counts = [length // side for length, side in zip(size, window, strict=True)]
    ordered = tokens.unflatten(2, window).unflatten(1, counts)
    cut = ordered.permute(0, 1, 4, 2, 5, 3, 6, 7)
    maps: Tensor = cut.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return maps


def relative_index(window: Size) -> Int[Tensor, "token token"]:
    """Number the differences of position within a window, each its own number from 0 on.

    Returns:
        Row: the token that asks; column: the token that is looked at.
    """
    axes = [torch.arange(side) for side in window]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    depth, height, width = position[:, :, None] - position[:, None, :]
    _, num_heights, num_widths = (2 * side - 1 for side in window)
    planes = depth + window[0] - 1
    rows = height + window[1] - 1
    columns = width + window[2] - 1
    index: Tensor = (planes * num_heights + rows) * num_widths + columns
    return index
