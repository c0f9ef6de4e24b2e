"""Correlation attention against squeeze and excitation by hand."""

import torch
from torch.testing import assert_close

from training.models.unetmm.correlation import CorrelationAttention


def test_channels_are_weighed_by_their_joint_averages_and_merged():
    torch.manual_seed(0)
    attention = CorrelationAttention(4).double()
    tokens = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    first, _, second, _ = attention.excite
    for sample in range(2):
        joint = torch.cat([tokens[sample, :, modality] for modality in range(4)], dim=1)
        hidden = first.weight @ joint.mean(dim=0) + first.bias
        leaky = torch.where(hidden > 0, hidden, 0.01 * hidden)
        weight = 1 / (1 + torch.exp(-(second.weight @ leaky + second.bias)))
        expected = (joint * weight) @ attention.merge.weight.T + attention.merge.bias
        assert_close(attention(tokens)[sample], expected, atol=1e-10, rtol=0)


def test_the_hidden_layer_is_an_eighth_of_the_joint_channels():
    attention = CorrelationAttention(64)
    assert attention.excite[0].weight.shape == (32, 256)
    assert attention.merge.weight.shape == (64, 256)
