"""The whole network (paper, section 2)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from training.models.logits import Logits
from training.models.unetmm.decoder import Decoder
from training.models.unetmm.encoder import CHANNELS, LEVELS, STRIDE, Encoder
from training.models.unetmm.fusion import Fusion
from training.models.unetmm.heads import Heads
from training.models.unetmm.position import Position

PositionLevels = Literal["last", "all"]


class UNetMM(nn.Module):
    """A 2D U-Net whose skip connections fuse four MR modalities by attention.

    From "Federated brain tumour segmentation using multi-modal information fusion" (anonymous, under
    review), section 2; `docs/model.md` says what the paper leaves open and what we chose.

    Args:
        num_classes: Planes of the output, each with its own sigmoid.
        position: Which position embedding to add to the encoder's features.
        position_levels: Add it at `en7` only, or at all levels.
        fuse_en2: Apply cross-modal attention at `en2` too, which the paper had no memory for.
        dropout: Probability of zeroing an element inside cross-modal attention.
    """

    def __init__(
        self,
        num_classes: int = 3,
        position: Position = "2d",
        position_levels: PositionLevels = "last",
        fuse_en2: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.fusion = nn.ModuleDict(
            {
                level: Fusion(
                    CHANNELS[level],
                    position=position if level == "en7" or position_levels == "all" else "none",
                    is_cross_modal=level != "en2" or fuse_en2,
                    dropout=dropout,
                )
                for level in LEVELS
            }
        )
        self.decoder = Decoder()
        self.heads = Heads(num_classes)

    def forward(self, image: Float[Tensor, "batch 4 height width"]) -> Logits:
        """Segment slices.

        Args:
            image: Modalities in the order of `MODALITIES`, each z-scored.

        Returns:
            Logits at the size of the image.

        Raises:
            ValueError: If height or width is no multiple of 32; pad the slices.
        """
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"slices of {height} x {width}: both must be multiples of {STRIDE}")
        features = self.encoder(image)
        fused = [self.fusion[level](features[level]) for level in reversed(LEVELS)]
        logits: Logits = self.heads(self.decoder(fused))
        return logits
