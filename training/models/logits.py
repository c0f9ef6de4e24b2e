"""What a network returns."""

from typing import Final, NamedTuple

from jaxtyping import Float
from torch import Tensor

SCALE_RATIOS: Final[tuple[float, ...]] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""H_d / H of UNetMM's decoder outputs D_7 to D_1, coarse to fine: the scale weights of equation 16."""


class Logits(NamedTuple):
    """Predictions before the sigmoid; all of them at the size of the image, a slice or a volume.

    Attributes:
        final: What inference uses.
        scales: Auxiliary predictions of a deeply supervised network; none of others.
        ratios: What each of these weighs in the loss, beside 1 of the final one.
    """

    final: Float[Tensor, "batch class *space"]
    scales: tuple[Float[Tensor, "batch class *space"], ...] = ()
    ratios: tuple[float, ...] = ()
