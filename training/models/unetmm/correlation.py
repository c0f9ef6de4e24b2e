"""Multi-modal correlation-based attention (paper, section 2.4.1)."""

from jaxtyping import Float
from torch import Tensor, nn

from training.models.unetmm.cross_modal import NUM_MODALITIES

REDUCTION = 8
"""How much narrower the hidden layer is than the joint features."""


class CorrelationAttention(nn.Module):
    r"""Weigh the channels of all modalities against each other and merge them, equations 9 to 11.

    With the four modalities' channels side by side as J of 4C channels,

    $$ w = \sigma(W_2 \, \mathrm{LeakyReLU}(W_1 \, \mathrm{mean}(J))), \quad G = W_g (w \odot J) $$

    A squeeze-and-excitation block over the modalities: Hu et al. (2018), arXiv:1709.01507.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        joint = NUM_MODALITIES * channels
        self.excite = nn.Sequential(
            nn.Linear(joint, joint // REDUCTION),
            nn.LeakyReLU(),
            nn.Linear(joint // REDUCTION, joint),
            nn.Sigmoid(),
        )
        self.merge = nn.Linear(joint, channels)

    def forward(
        self, tokens: Float[Tensor, "batch position 4 channel"]
    ) -> Float[Tensor, "batch position channel"]:
        """Merge the modalities into one vector a position."""
        joint = tokens.flatten(2)
        weight = self.excite(joint.mean(dim=1, keepdim=True))
        merged: Tensor = self.merge(joint * weight)
        return merged
