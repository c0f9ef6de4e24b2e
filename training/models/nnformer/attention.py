"""Volume-based self-attention and skip attention."""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from training.models.attention_heads import require_equal_heads
from training.models.nnformer.windows import Windows, relative_index

BIAS_DEVIATION: Final = 0.02
"""Standard deviation of the position bias before training, as in the reference."""


class BiasedAttention(nn.Module):
    r"""Attend within every window, with a learnt bias for every relative position.

    For each head, with d channels, and with the bias B of the two tokens' difference of position,

    $$ \mathrm{softmax}(Q K^T / \sqrt{d} + B) V $$

    A window that covers the map makes this the paper's global attention.

    Args:
        windows: Shifted ones get a mask: tokens that only the shift brought together stay apart.
        num_heads: A divisor of the channels.
    """

    def __init__(self, windows: Windows, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.bias = nn.Embedding(math.prod(2 * side - 1 for side in windows.window), num_heads)
        nn.init.trunc_normal_(self.bias.weight, std=BIAS_DEVIATION)
        self.index: Tensor
        self.register_buffer("index", relative_index(windows.window), persistent=False)
        self.together: Tensor | None
        together = windows.together() if any(windows.shift) else None
        self.register_buffer("together", together, persistent=False)

    def forward(
        self,
        query: Float[Tensor, "batch window token channel"],
        key: Float[Tensor, "batch window token channel"],
        value: Float[Tensor, "batch window token channel"],
    ) -> Float[Tensor, "batch window token channel"]:
        """Attend from every token over the tokens of its window."""
        bias = self.bias(self.index).movedim(-1, 0).contiguous()  # or no fused kernel takes it
        # The fused kernels take two axes before the tokens. Windows join the batch, where one bias
        # serves them all, or the heads, where each has its own and the batch shares them.
        joined = (0, 1)
        if self.together is not None:
            bias = torch.where(self.together[:, None], bias, -torch.inf).flatten(0, 1)
            joined = (1, 2)
        queries, keys, values = (
            source.unflatten(-1, (self.num_heads, -1)).transpose(2, 3)
            for source in (query, key, value)
        )
        found = functional.scaled_dot_product_attention(
            queries.flatten(*joined),
            keys.flatten(*joined),
            values.flatten(*joined),
            attn_mask=bias[None],
        )
        merged: Tensor = found.reshape(queries.shape).transpose(2, 3).flatten(3)
        return merged


class VolumeAttention(nn.Module):
    """Multi-head self-attention within local volumes or over the whole map: LV, SLV and GV-MSA."""

    def __init__(self, channels: int, windows: Windows, num_heads: int) -> None:
        super().__init__()
        require_equal_heads(channels, num_heads)
        self.windows = windows
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.attend = BiasedAttention(windows, num_heads)
        self.output = nn.Linear(channels, channels)

    def forward(
        self, maps: Float[Tensor, "batch depth height width channel"]
    ) -> Float[Tensor, "batch depth height width channel"]:
        """Let every token of the map look around itself."""
        tokens = self.windows.split(maps)
        query, key, value = self.query_key_value(tokens).chunk(3, dim=-1)
        return self.windows.join(self.output(self.attend(query, key, value)))


class SkipAttention(nn.Module):
    """Attention in place of a skip connection: the decoder looks up the encoder's features.

    The decoder's features are the queries as they are, without a linear map.
    """

    def __init__(self, channels: int, windows: Windows, num_heads: int) -> None:
        super().__init__()
        require_equal_heads(channels, num_heads)
        self.windows = windows
        self.key_value = nn.Linear(channels, 2 * channels)
        self.attend = BiasedAttention(windows, num_heads)
        self.output = nn.Linear(channels, channels)

    def forward(
        self,
        decoded: Float[Tensor, "batch depth height width channel"],
        encoded: Float[Tensor, "batch depth height width channel"],
    ) -> Float[Tensor, "batch depth height width channel"]:
        """Let every token of the decoder look around its place in the encoder's map."""
        key, value = self.key_value(self.windows.split(encoded)).chunk(2, dim=-1)
        found = self.attend(self.windows.split(decoded), key, value)
        return self.windows.join(self.output(found))
