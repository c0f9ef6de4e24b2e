"""TransBTS: size against the published network, layers against torch's and MONAI's, gradients."""

import os

import pytest
import torch
from monai.networks.blocks.segresnet_block import ResBlock
from torch import nn
from torch.testing import assert_close

from cache_schema.errors import InputError
from training.losses import deep_supervision_loss
from training.models.size import count_flops, count_parameters
from training.models.transbts import (
    TINY,
    Bottleneck,
    DecoderStage,
    Encoder,
    EncoderBlock,
    TransBTS,
    Transformer,
    TransformerLayer,
)

PATCH = (16, 24, 32)
NUM_TOKENS = 2 * 3 * 4


def tiny(patch=PATCH, **options):
    torch.manual_seed(0)
    return TransBTS(num_classes=3, patch=patch, **(TINY | options))


def small_transformer():
    torch.manual_seed(0)
    return Transformer(
        NUM_TOKENS, 16, num_layers=2, num_heads=4, hidden=32, dropout=0.0
    ).requires_grad_(requires_grad=False)


def random_target(patch):
    return (torch.rand(1, 3, *patch) > 0.8).float()


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return TransBTS(num_classes=3)


def test_parameters_are_the_published_ones_without_those_that_training_cannot_move(full_size):
    unused_layers = 512 * 512 + 512 + 2 * 512  # a linear embedding, a LayerNorm
    biases_before_batchnorm = 128 + 4 * 128 + 2 * (64 + 32 + 16)
    fourth_class = 16 + 1
    published = count_parameters(full_size) + unused_layers + biases_before_batchnorm + fourth_class
    assert published == 32_987_588
    assert round(published / 1e6, 2) == 32.99


def test_multiply_adds_are_within_one_percent_of_those_measured_elsewhere(full_size):
    assert count_flops(full_size, (1, 4, 128, 128, 128)) == pytest.approx(2 * 325e9, rel=0.01)


def test_the_tiny_network_stays_tiny_even_with_full_size_windows():
    assert count_parameters(tiny((32, 32, 32))) < 160_000
    assert count_parameters(tiny((128, 128, 128))) < 300_000


def test_the_logits_have_the_size_of_the_window_and_a_plane_for_each_class():
    network = TransBTS(num_classes=2, patch=PATCH, **TINY)
    logits = network(torch.randn(2, 4, *PATCH))
    assert logits.final.shape == (2, 2, *PATCH)
    assert (logits.scales, logits.ratios) == ((), ())


def test_the_encoder_gives_features_at_full_half_quarter_and_eighth_size():
    features = Encoder((4, 6, 8, 10), num_groups=2, dropout=0.0)(torch.zeros(2, 4, 16, 24, 40))
    assert [tuple(level.shape) for level in features] == [
        (2, 4, 16, 24, 40),
        (2, 6, 8, 12, 20),
        (2, 8, 4, 6, 10),
        (2, 10, 2, 3, 5),
    ]


def test_whole_channels_of_the_first_convolution_are_dropped_in_training_alone():
    torch.manual_seed(0)
    stem = Encoder((8, 8, 8, 8), num_groups=2, dropout=0.5).stages[0][:2]
    image = torch.randn(16, 4, 3, 4, 5)
    zeros = (stem(image) == 0).flatten(2).float().mean(dim=2)
    assert set(zeros.unique().tolist()) == {0.0, 1.0}
    assert zeros.mean() == pytest.approx(0.5, abs=0.15)
    assert stem.eval()(image).all()


def test_the_bottleneck_puts_tokens_back_where_they_were_and_refines_them():
    torch.manual_seed(0)
    bottleneck = Bottleneck(
        6, 8, Transformer(24, 8, num_layers=1, num_heads=2, hidden=8, dropout=0.0)
    )
    bottleneck.transformer = nn.Identity()
    features = torch.randn(2, 6, 2, 3, 4)
    reduced = bottleneck.reduce(bottleneck.embed(features))
    assert_close(bottleneck(features), reduced + bottleneck.refine(reduced))


def test_a_decoder_stage_joins_the_skip_connection_with_twice_the_coarse_features():
    torch.manual_seed(0)
    stage = DecoderStage(3, 2).requires_grad_(requires_grad=False).eval()
    for parameter in stage.parameters():
        nn.init.zeros_(parameter)  # the refinement adds nothing
    stage.enlarge[0].weight[:, :, 0, 0, 0] = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    stage.enlarge[1].weight[[0, 1], [0, 1]] = 1.0  # every voxel eight times
    stage.join.weight[:, :, 0, 0, 0] = torch.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 5.0, 0.0, 1.0]])
    coarse, skip = torch.randn(2, 3, 1, 2, 3), torch.randn(2, 2, 2, 4, 6)
    large = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
    first = skip[:, 0] + 3 * (large[:, 0] + 2 * large[:, 2])
    second = 5 * skip[:, 1] + large[:, 1]
    assert_close(stage(coarse, skip), torch.stack((first, second), dim=1))
    nn.init.ones_(stage.refine[4].bias)  # now it adds one everywhere
    assert_close(stage(coarse, skip), torch.stack((first, second), dim=1) + 1)


def test_every_parameter_receives_a_gradient_that_is_more_than_rounding():
    # What BatchNorm or a softmax cancels has a gradient near 1e-17 in float64, and 0 nowhere.
    network = tiny().double()
    image = torch.randn(2, 4, *PATCH, dtype=torch.float64)
    target = random_target(PATCH).expand(2, -1, -1, -1, -1)
    deep_supervision_loss(network(image), target).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-9, name


def test_a_small_step_against_the_gradient_lowers_the_loss():
    network = tiny(dropout=0.0, stem_dropout=0.0)
    image, target = torch.randn(1, 4, *PATCH), random_target(PATCH)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = deep_supervision_loss(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_a_single_smallest_window_trains():
    patch = (16, 16, 16)
    deep_supervision_loss(tiny(patch)(torch.randn(1, 4, *patch)), random_target(patch)).backward()


def test_a_single_window_trains_under_bfloat16():
    patch = (32, 16, 24)  # 16 deep, 2 at the bottom, and oneDNN 3.12 leaves gaps in the gradient
    network = tiny(patch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(1, 4, *patch))
    deep_supervision_loss(logits, random_target(patch)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_only_training_is_random():
    network, image = tiny(), torch.randn(1, 4, *PATCH)
    with torch.no_grad():
        assert not torch.equal(network(image).final, network(image).final)
        network.eval()
        assert torch.equal(network(image).final, network(image).final)


def test_every_decoder_stage_is_given_the_features_of_its_size():
    network, image, skips = tiny().eval(), torch.randn(1, 4, *PATCH), []
    for stage in network.decoder:
        stage.register_forward_pre_hook(lambda _stage, inputs: skips.append(inputs[1]))
    network(image)
    full, half, quarter, _ = network.encoder(image)
    for skip, features in zip(skips, (quarter, half, full), strict=True):
        assert torch.equal(skip, features)


def test_windows_are_segmented_independently_in_evaluation():
    network, image = tiny().eval(), torch.randn(3, 4, *PATCH)
    with torch.no_grad():
        together, alone = network(image).final[1:2], network(image[1:2]).final
    assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_an_encoder_block_is_the_residual_block_of_monai():
    torch.manual_seed(0)
    ours, theirs = EncoderBlock(8, num_groups=2), ResBlock(3, 8, norm=("GROUP", {"num_groups": 2}))
    first_norm, _, first, second_norm, _, second = ours.layers
    for mine, other in ((first_norm, theirs.norm1), (second_norm, theirs.norm2)):
        nn.init.normal_(mine.weight)
        nn.init.normal_(mine.bias)
        other.load_state_dict(mine.state_dict())
    for mine, other in ((first, theirs.conv1), (second, theirs.conv2)):
        nn.init.zeros_(mine.bias)  # theirs have none
        other.conv.load_state_dict({"weight": mine.weight})
    features = torch.randn(2, 8, 3, 4, 5)
    assert_close(ours(features), theirs(features), atol=1e-5, rtol=1e-5)


def test_a_transformer_layer_is_torchs_with_the_norms_first_and_no_bias_before_the_heads():
    torch.manual_seed(0)
    ours = TransformerLayer(24, num_heads=3, hidden=40, dropout=0.1).eval()
    theirs = nn.TransformerEncoderLayer(
        24, 3, 40, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.query_key_value.weight,
            "self_attn.in_proj_bias": torch.zeros(3 * 24),
            "self_attn.out_proj.weight": ours.output[0].weight,
            "self_attn.out_proj.bias": ours.output[0].bias,
            "norm1.weight": ours.norm.weight,
            "norm1.bias": ours.norm.bias,
            "norm2.weight": ours.mlp[0].weight,
            "norm2.bias": ours.mlp[0].bias,
            "linear1.weight": ours.mlp[1].weight,
            "linear1.bias": ours.mlp[1].bias,
            "linear2.weight": ours.mlp[4].weight,
            "linear2.bias": ours.mlp[4].bias,
        }
    )
    tokens = torch.randn(2, 7, 24)
    assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=1e-5)


def test_one_dropout_behind_the_attention_has_the_rate_of_two():
    dropout = TransformerLayer(8, num_heads=2, hidden=8, dropout=0.1).output[1]
    assert dropout.p == pytest.approx(0.19)  # 1 - 0.9 * 0.9


def test_without_position_embedding_swapped_tokens_come_out_swapped():
    transformer, tokens = small_transformer(), torch.randn(2, NUM_TOKENS, 16)
    swapped = tokens[:, [1, 0, *range(2, NUM_TOKENS)]]
    related = transformer(tokens)[:, [1, 0, *range(2, NUM_TOKENS)]]
    assert not transformer.position.any()  # as it is before training
    assert_close(transformer(swapped), related, atol=1e-5, rtol=1e-5)


def test_with_position_embedding_a_token_means_something_else_elsewhere():
    transformer, tokens = small_transformer(), torch.randn(2, NUM_TOKENS, 16)
    transformer.position.normal_()
    swapped = tokens[:, [1, 0, *range(2, NUM_TOKENS)]]
    related = transformer(tokens)[:, [1, 0, *range(2, NUM_TOKENS)]]
    assert (transformer(swapped) - related).abs().amax(dim=(0, 2)).min() > 1e-3


def test_the_window_decides_how_many_places_are_embedded():
    assert tiny().bottleneck.transformer.position.shape == (NUM_TOKENS, TINY["width"])


@pytest.mark.parametrize("patch", [(100, 128, 128), (32, 64, 65), (8, 32, 32), (32, 0, 32)])
def test_a_patch_that_cannot_be_halved_three_times_is_refused_in_one_line(patch):
    with pytest.raises(InputError) as caught:
        TransBTS(num_classes=3, patch=patch, **TINY)
    size = " x ".join(map(str, patch))
    assert str(caught.value) == (
        f"--crop/--depth: transbts cannot take patches of {size}; give multiples of 8, 16 or more"
    )


def test_a_patch_of_another_shape_with_as_many_tokens_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 24, 16\).*built for patches of \(16, 24, 32\)"):
        tiny()(torch.zeros(1, 4, 32, 24, 16))


@pytest.mark.skipif(not os.environ.get("FEDUNETMM_SLOW"), reason="two minutes and 12 GB of memory")
def test_the_full_size_network_makes_a_training_step():
    torch.manual_seed(0)
    network = TransBTS(num_classes=3)
    patch = (128, 128, 128)
    logits = network(torch.randn(1, 4, *patch))
    assert logits.final.shape == (1, 3, *patch)
    deep_supervision_loss(logits, random_target(patch)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
