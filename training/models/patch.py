"""The part of a volume that a network of three dimensions is built for and given."""

from collections.abc import Sequence

from torch import Tensor

from cache_schema.errors import InputError

Size = tuple[int, int, int]
"""Depth, height and width in voxels."""


def require_size(image: Tensor, patch: Size) -> None:
    """Make sure that a network is given what it was built for.

    Some would take a patch whose axes are turned for another that has as many voxels.

    Raises:
        ValueError: If the image has another size.
    """
    if image.shape[2:] != patch:
        raise ValueError(f"images of {tuple(image.shape[2:])}: built for patches of {patch}")


def refuse(model: str, patch: Sequence[int], wanted: str) -> InputError:
    """Say that a network cannot take patches of a size, and what to give instead."""
    return InputError(
        f"--crop/--depth: {model} cannot take patches of {spell(patch)}; give {wanted}"
    )


def spell(sides: Sequence[int]) -> str:
    """Write a size as it is read aloud: 32 x 32 x 32."""
    return " x ".join(map(str, sides))
