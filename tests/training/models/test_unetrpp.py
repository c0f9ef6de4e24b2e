"""UNETR++ against its published size, MONAI's residual block and attention with explicit indices."""

import math
import os

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from cache_schema.errors import InputError
from training.models.size import count_flops, count_parameters
from training.models.unetrpp import (
    TINY,
    UNETRPP,
    AttentionBlock,
    Level,
    PairedAttention,
    ResidualBlock,
)

PATCH = (48, 32, 64)


def tiny(patch=PATCH):
    torch.manual_seed(0)
    return UNETRPP(num_classes=3, patch=patch, **TINY)


def backward(model, batch, patch):
    """One training step's gradients, of the loss with the weights of deep supervision."""
    target = torch.randint(0, 2, (batch, 3, *patch)).float()
    logits = model(torch.randn(batch, 4, *patch))
    loss = binary_cross_entropy_with_logits(logits.final, target)
    for scale, ratio in zip(logits.scales, logits.ratios, strict=True):
        loss = loss + ratio * binary_cross_entropy_with_logits(scale, target)
    loss.backward()
    return logits


def without_gradient(model):
    """Names of the parameters that a step would leave alone or destroy."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None
        or not parameter.grad.isfinite().all()
        or not parameter.grad.count_nonzero()
    ]


def test_the_default_has_the_published_number_of_parameters():
    # the authors' code has 42 647 604 with four classes, a background among them;
    # a class less saves 16 + 32 + 64 weights and three biases
    count = count_parameters(UNETRPP(num_classes=3))
    assert count == pytest.approx(42.65e6, rel=0.005)
    assert count == 42_647_604 - 115


def test_the_default_computes_73_billion_multiply_adds():
    assert round(count_flops(UNETRPP(num_classes=3), (1, 4, 128, 128, 128)) / 2e9) == 73


def test_the_tiny_network_has_less_than_300_thousand_parameters():
    assert count_parameters(tiny((32, 32, 32))) < 300_000


@pytest.mark.parametrize("batch", [1, 2])
def test_all_predictions_have_the_size_of_a_patch_that_is_no_cube(batch):
    logits = tiny()(torch.randn(batch, 4, *PATCH))
    shapes = [tuple(plane.shape) for plane in (logits.final, *logits.scales)]
    assert shapes == 3 * [(batch, 3, *PATCH)]


def test_predictions_at_an_eighth_weigh_a_quarter_and_those_at_a_quarter_a_half():
    model = tiny()
    positions = []
    for head in model.scales:
        head.register_forward_hook(lambda _, __, output: positions.append(tuple(output.shape[2:])))
    assert model(torch.randn(1, 4, *PATCH)).ratios == (0.25, 0.5)
    assert positions == [(6, 4, 8), (12, 8, 16)]


def test_inference_predicts_once():
    model = tiny().eval()
    for head in model.scales:
        head.register_forward_hook(lambda *_: pytest.fail("computed for nothing"))
    logits = model(torch.randn(1, 4, *PATCH))
    assert logits.scales == ()
    assert logits.ratios == ()


@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_has_a_gradient(batch):
    model = tiny()
    backward(model, batch, PATCH)
    assert without_gradient(model) == []


def test_a_training_step_in_bfloat16_is_finite_and_close_to_single_precision():
    model = tiny().eval()
    for module in model.modules():
        if isinstance(module, AttentionBlock):
            torch.nn.init.ones_(module.gain)
    image = torch.randn(1, 4, *PATCH)
    expected = model(image).final
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(image).final
    assert_close(found.float(), expected, atol=0.05, rtol=0.05)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backward(model, 1, PATCH)
    assert without_gradient(model) == []


@pytest.mark.parametrize(
    ("patch", "options", "multiple"),
    [
        ((128, 128, 100), {}, 32),
        ((40, 64, 64), {}, 32),
        ((32, 32, 32), {}, 32),  # one position at the coarsest level
        ((32, 24, 32), TINY, 16),
        ((0, 32, 32), TINY, 16),
    ],
)
def test_a_wrong_patch_is_refused_in_one_line(patch, options, multiple):
    with pytest.raises(InputError, match=rf"--crop/--depth: .*multiples of {multiple}") as caught:
        UNETRPP(num_classes=3, patch=patch, **options)
    assert "\n" not in str(caught.value)


def test_a_decoder_level_adds_the_features_of_the_same_level_of_the_encoder():
    decoder = tiny().eval().decoder
    for upsample in decoder.upsample:
        torch.nn.init.zeros_(upsample.weight)
    fine, middle, coarse = (
        torch.randn(2, 8, 12, 8, 16),
        torch.randn(2, 16, 6, 4, 8),
        torch.randn(2, 32, 3, 2, 4),
    )
    decoded = decoder([fine, middle, coarse])
    assert_close(decoded[0], decoder.stages[0](middle))
    assert_close(decoded[1], decoder.stages[1](fine))


def test_as_many_groups_are_normalised_as_there_were_channels_before():
    groups = [downsample[1].num_groups for downsample in tiny().encoder.downsample]
    assert groups == [4, 8, 16]  # four modalities, then the channels of TINY


def test_an_image_turned_by_its_axes_is_refused():
    with pytest.raises(ValueError, match=r"images of \(32, 48, 64\).*\(48, 32, 64\)"):
        tiny()(torch.randn(1, 4, 32, 48, 64))


def test_attention_starts_as_published_narrower_in_the_encoder():
    model = tiny()
    encoder = model.encoder.stages[2][0].attention.query_key_values.weight  # 32 channels
    decoder = model.decoder.stages[0][0].attention.query_key_values.weight  # 16 channels
    assert encoder.std().item() == pytest.approx(0.02, rel=0.05)
    assert decoder.std().item() == pytest.approx(1 / math.sqrt(3 * 16), rel=0.05)


def unit_columns(matrix):
    return [
        [row[column] / math.sqrt(sum(other[column] ** 2 for other in matrix)) for column in (0, 1)]
        for row in matrix
    ]


def softmax(scores):
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def attend_by_loops(module, tokens):
    """Both attentions with every index written out; three heads of two channels."""
    positions, few = module.projection.shape
    weight = module.query_key_values.weight
    result = torch.zeros_like(tokens)
    for sample in range(len(tokens)):
        for head in range(3):
            query, key, channel_value, spatial_value = (
                (tokens[sample] @ weight[start : start + 2].T).tolist()
                for start in (2 * head, 6 + 2 * head, 12 + 2 * head, 18 + 2 * head)
            )
            asks, answers = unit_columns(query), unit_columns(key)
            few_keys, few_values = (
                [
                    [
                        sum(module.projection[n, p].item() * matrix[n][c] for n in range(positions))
                        for c in (0, 1)
                    ]
                    for p in range(few)
                ]
                for matrix in (key, spatial_value)
            )
            heat = module.channel_temperature[head].item()
            channel_share = [
                softmax(
                    [
                        heat * sum(q[i] * k[j] for q, k in zip(asks, answers, strict=True))
                        for j in (0, 1)
                    ]
                )
                for i in (0, 1)
            ]
            heat = module.spatial_temperature[head].item()
            for n in range(positions):
                share = softmax([heat * sum(asks[n][c] * k[c] for c in (0, 1)) for k in few_keys])
                for i in (0, 1):
                    result[sample, n, 2 * head + i] = sum(
                        channel_share[i][j] * channel_value[n][j] for j in (0, 1)
                    ) + sum(share[p] * few_values[p][i] for p in range(few))
    return result


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = PairedAttention(Level(channels=6, positions=7, projection=4), num_heads=3, dropout=0.5)
    torch.nn.init.uniform_(module.channel_temperature, 1.0, 5.0)
    torch.nn.init.uniform_(module.spatial_temperature, 1.0, 5.0)
    return module.double().eval()


def test_paired_attention_equals_attention_with_explicit_indices(attention):
    tokens = torch.randn(2, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        assert_close(attention(tokens), attend_by_loops(attention, tokens), atol=1e-12, rtol=0)


def test_dropout_of_both_attentions_acts_in_training_only(attention):
    tokens = torch.randn(1, 7, 6, dtype=torch.float64)
    parts = torch.randn(3, 1, 3, 7, 2, dtype=torch.float64)
    branches = (
        lambda: attention(tokens),
        lambda: attention.attend_to_channels(*parts),
        lambda: attention.attend_to_positions(*parts),
    )
    for branch in branches:
        assert torch.equal(branch(), branch())
    attention.train()
    for branch in branches:
        assert not torch.equal(branch(), branch())


def test_a_block_leaves_every_voxel_where_it_is():
    block = AttentionBlock(Level(channels=4, positions=30, projection=3), num_heads=2, dropout=0.1)
    torch.nn.init.zeros_(block.gain)
    torch.nn.init.zeros_(block.mix[-1].weight)
    torch.nn.init.zeros_(block.mix[-1].bias)
    features = torch.randn(2, 4, 5, 2, 3)
    assert torch.equal(block(features), features)


def test_a_position_embedding_belongs_to_one_voxel():
    block = AttentionBlock(Level(channels=4, positions=30, projection=3), num_heads=2, dropout=0.1)
    torch.nn.init.zeros_(block.gain)
    torch.nn.init.zeros_(block.mix[-1].weight)
    torch.nn.init.zeros_(block.mix[-1].bias)
    with torch.no_grad():
        block.position[4 * 6 + 1 * 3 + 2, 3] = 1.0  # plane 4, row 1, column 2
    embedded = block(torch.zeros(1, 4, 5, 2, 3))
    assert embedded.nonzero().tolist() == [[0, 3, 4, 1, 2]]


@pytest.mark.parametrize("in_channels", [4, 6])
def test_the_residual_block_is_that_of_monai(in_channels):
    blocks = pytest.importorskip("monai.networks.blocks.dynunet_block")
    torch.manual_seed(0)
    block = ResidualBlock(in_channels, 6, torch.nn.InstanceNorm3d)
    oracle = blocks.UnetResBlock(3, in_channels, 6, kernel_size=3, stride=1, norm_name="instance")
    assert len(list(oracle.parameters())) == len(list(block.parameters()))
    with torch.no_grad():
        for theirs, ours in zip(oracle.parameters(), block.parameters(), strict=True):
            theirs.copy_(ours)
    features = torch.randn(2, in_channels, 3, 4, 5)
    assert_close(block(features), oracle(features))


@pytest.mark.skipif(not os.environ.get("FEDUNETMM_SLOW"), reason="40 s and 4.5 GB")
def test_the_default_trains_on_a_patch_of_128_voxels_a_side():
    torch.manual_seed(0)
    model = UNETRPP(num_classes=3)
    logits = backward(model, 1, (128, 128, 128))
    assert logits.final.shape == (1, 3, 128, 128, 128)
    assert without_gradient(model) == []
