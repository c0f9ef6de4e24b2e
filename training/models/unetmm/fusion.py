"""Four modalities in, one skip connection out: the fusion at one level (paper, section 2.4)."""

from jaxtyping import Float
from torch import Tensor, nn

from training.models.unetmm.correlation import CorrelationAttention
from training.models.unetmm.cross_modal import CrossModalAttention
from training.models.unetmm.position import Position, PositionEmbedding


class Fusion(nn.Module):
    """Position embedding, cross-modal attention where wanted, correlation attention: G_l.

    Attributes:
        cross_modal: Absent at `en2` in the paper, for want of memory.
    """

    def __init__(
        self, channels: int, *, position: Position, is_cross_modal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.position = PositionEmbedding(position)
        self.cross_modal = CrossModalAttention(channels, dropout) if is_cross_modal else None
        self.correlation = CorrelationAttention(channels)

    def forward(
        self, features: Float[Tensor, "batch 4 channel rows columns"]
    ) -> Float[Tensor, "batch channel rows columns"]:
        """Fuse the modalities' features of one level."""
        rows = features.shape[3]
        # One copy here, and the four modalities of a position lie side by side from now on:
        # attention reads them as heads, and their concatenation costs nothing.
        tokens = self.position(features).flatten(3).permute(0, 3, 1, 2).contiguous()
        if self.cross_modal is not None:
            tokens = self.cross_modal(tokens)
        merged = self.correlation(tokens)
        fused: Tensor = merged.transpose(1, 2).unflatten(2, (rows, -1))
        return fused
