"""One decoder stage by hand, and the sizes of all."""

import torch
from torch.nn import functional
from torch.testing import assert_close

from training.models.unetmm.decoder import Decoder, DecoderStage


def test_a_stage_upsamples_joins_the_skip_first_and_normalises_after_the_relu():
    torch.manual_seed(0)
    stage = DecoderStage(6, 4, 5).train()
    coarse, skip = torch.randn(3, 6, 2, 3), torch.randn(3, 4, 4, 6)
    doubled = functional.interpolate(coarse, size=(4, 6), mode="bilinear", align_corners=False)
    kernel, bias = stage.conv.weight[:, :, 0, 0], stage.conv.bias
    mixed = torch.einsum("oc,bchw->bohw", kernel, torch.cat((skip, doubled), dim=1))
    active = (mixed + bias[:, None, None]).clamp(min=0)
    mean = active.mean(dim=(0, 2, 3), keepdim=True)
    deviation = (active.var(dim=(0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    assert_close(stage(coarse, skip), (active - mean) / deviation, atol=1e-5, rtol=1e-5)


def test_the_last_stage_has_no_skip():
    assert DecoderStage(6, 0, 5)(torch.randn(2, 6, 2, 3), None).shape == (2, 5, 4, 6)


def test_the_decoder_gives_six_outputs_from_the_deepest_to_full_size():
    channels_and_strides = [(512, 32), (256, 16), (128, 8), (64, 4), (64, 2)]
    fused = [torch.randn(1, c, 64 // s, 96 // s) for c, s in channels_and_strides]
    outputs = Decoder().eval()(fused)
    assert outputs[0] is fused[0]  # D_7 is G_7
    assert [tuple(output.shape[1:]) for output in outputs] == [
        (512, 2, 3),
        (256, 4, 6),
        (128, 8, 12),
        (64, 16, 24),
        (64, 32, 48),
        (128, 64, 96),
    ]
