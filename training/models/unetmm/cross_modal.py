"""Cross-modality attention-based fusion (paper, section 2.3)."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cache_schema.vocabulary import MODALITIES

NUM_MODALITIES: Final = len(MODALITIES)

OTHERS: Final[tuple[tuple[int, ...], ...]] = tuple(
    tuple(other for other in range(NUM_MODALITIES) if other != modality)
    for modality in range(NUM_MODALITIES)
)
"""For every modality the three others, in modality order."""

PRIMARY_OF_SLOT: Final[tuple[int, ...]] = tuple(
    OTHERS[auxiliary][place]
    for place in range(NUM_MODALITIES - 1)
    for auxiliary in range(NUM_MODALITIES)
)
"""The twelve pairs as attention sees them, auxiliary fastest: which primary asks in each slot."""

SLOT_OF_PAIR: Final[tuple[int, ...]] = tuple(
    OTHERS[auxiliary].index(primary) * NUM_MODALITIES + auxiliary
    for primary in range(NUM_MODALITIES)
    for auxiliary in OTHERS[primary]
)
"""The twelve pairs by primary, then by auxiliary in modality order: the slot of each."""


class CrossModalAttention(nn.Module):
    r"""Let every modality, as primary, look up the three others, equation 8.

    For a primary P with auxiliaries A_1, A_2, A_3, over all positions of the level,

    $$ R_i = W_o \, \mathrm{softmax}(Q_P K_{A_i}^T / \sqrt{C}) V_{A_i}, \quad
       F^O = \mathrm{MLP}(\mathrm{Dropout}(F^P + W_f [R_1; R_2; R_3])) $$

    One module serves the four primaries of its level. Every 1x1 convolution is a linear map of a
    position's channels and is written as one. Scaled dot-product attention: Vaswani et al. (2017),
    arXiv:1706.03762; its fused kernel never holds the matrix of positions by positions, so memory
    is linear in the positions: Dao et al. (2022), arXiv:2205.14135.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        self.fuse = nn.Linear((NUM_MODALITIES - 1) * channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )

    def forward(
        self, tokens: Float[Tensor, "batch position 4 channel"]
    ) -> Float[Tensor, "batch position 4 channel"]:
        """Fuse; the modality axis of the result is the primary."""
        query, key, value = self.query_key_value(tokens).chunk(3, dim=-1)
        found = self.output(attend_to_others(query, key, value))
        fused = self.fuse(found.flatten(3))
        mixed: Tensor = self.mlp(self.dropout(tokens + fused))
        return mixed


def attend_to_others(
    query: Float[Tensor, "batch position 4 channel"],
    key: Float[Tensor, "batch position 4 channel"],
    value: Float[Tensor, "batch position 4 channel"],
) -> Float[Tensor, "batch position 4 3 channel"]:
    """Attend from every modality over all positions of each other modality, in one fused call.

    The auxiliary takes the part of the attention head: its keys and values stay where they are and
    three times as many queries, those of the three primaries, meet them. A gather of keys and values
    for twelve pairs would triple them instead.

    Returns:
        By position, primary and auxiliary, auxiliaries in modality order without the primary.
    """
    asked = query.unbind(2)
    queries = torch.stack([asked[primary] for primary in PRIMARY_OF_SLOT], dim=2)
    found = functional.scaled_dot_product_attention(
        queries.unflatten(2, (-1, NUM_MODALITIES)).flatten(1, 2).transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
    )
    slots = found.transpose(1, 2).reshape(queries.shape).unbind(2)
    pairs = torch.stack([slots[slot] for slot in SLOT_OF_PAIR], dim=2)
    by_primary: Tensor = pairs.unflatten(2, (NUM_MODALITIES, -1))
    return by_primary
