"""What a deeply supervised network returns."""

from typing import Final, NamedTuple

from jaxtyping import Float
from torch import Tensor

SCALE_RATIOS: Final[tuple[float, ...]] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""H_d / H of the decoder outputs D_7 to D_1, coarse to fine: the scale weights of equation 16."""


class Logits(NamedTuple):
    """Predictions before the sigmoid; all of them at the size of the image.

    Attributes:
        final: What inference uses.
        scales: One auxiliary prediction a decoder output, in the order of `SCALE_RATIOS`.
    """

    final: Float[Tensor, "batch class height width"]
    scales: tuple[Float[Tensor, "batch class height width"], ...]
