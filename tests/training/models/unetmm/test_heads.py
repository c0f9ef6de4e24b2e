"""What the heads are made of and how their outputs combine."""

import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from training.models.logits import SCALE_RATIOS
from training.models.unetmm.decoder import DECODER_CHANNELS
from training.models.unetmm.heads import Heads, segmentation_head


def test_a_head_is_the_chain_of_equation_15_with_half_the_channels_inside():
    head = segmentation_head(10, 3)
    kinds = [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Conv2d]
    assert [type(layer) for layer in head] == kinds
    kernels = [tuple(head[index].weight.shape) for index in (0, 3, 6)]
    assert kernels == [(5, 10, 3, 3), (5, 5, 3, 3), (3, 5, 3, 3)]


def test_the_final_output_mixes_all_upsampled_scales_coarse_to_fine():
    torch.manual_seed(0)
    heads = Heads(num_classes=2).eval()
    decoded = [
        torch.randn(1, channels, int(64 * ratio), int(96 * ratio))
        for channels, ratio in zip(DECODER_CHANNELS, SCALE_RATIOS, strict=True)
    ]
    logits = heads(decoded)
    for head, output, scale in zip(heads.scales, decoded, logits.scales, strict=True):
        full = functional.interpolate(head(output), size=(64, 96), mode="bilinear")
        assert_close(scale, full)
    kernel, bias = heads.final.weight[:, :, 0, 0], heads.final.bias
    mixed = torch.einsum("oc,bchw->bohw", kernel, torch.cat(logits.scales, dim=1))
    assert_close(logits.final, mixed + bias[:, None, None], atol=1e-5, rtol=1e-5)
