"""Counts by hand."""

import torch
from torch import nn

from training.models.size import count_flops, count_parameters


class Attention(nn.Module):
    def forward(self, tokens):
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_frozen_parameters_are_not_counted():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    model[0].bias.requires_grad = False
    assert count_parameters(model) == 15 + 10


def test_a_multiply_add_is_two_operations():
    # 7 outputs, each 3 * 3 * 3 products, over 10 x 12 pixels of 2 samples
    model = nn.Conv2d(3, 7, kernel_size=3, padding=1, bias=False)
    assert count_flops(model, (2, 3, 10, 12)) == 2 * 7 * 27 * 120 * 2


def test_attention_is_counted():
    # 4 heads, 30 x 30 pairs of positions, 8 channels: once for the scores, once for the sums
    assert count_flops(Attention(), (1, 4, 30, 8)) == 2 * (4 * 30 * 30 * 8) * 2


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model, (1, 2, 4, 4))
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
