"""nnFormer against hand-written attention, MONAI's shifted windows and the published sizes."""

import itertools
import os

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask

from cache_schema.errors import InputError
from training.models.nnformer.attention import SkipAttention, VolumeAttention
from training.models.nnformer.network import SYNAPSE, TINY, NnFormer
from training.models.nnformer.stages import TransformerBlock
from training.models.nnformer.windows import Windows, assemble, partition, relative_index
from training.models.size import count_flops, count_parameters

PATCH = (32, 64, 48)


def tiny(**options):
    torch.manual_seed(0)
    return NnFormer(num_classes=3, **{"patch": PATCH, **TINY, **options})


def without_memory(**options):
    with torch.device("meta"):
        return NnFormer(num_classes=3, **options)


def image(patch=PATCH, batch=2):
    return torch.randn(batch, 4, *patch, generator=torch.Generator().manual_seed(1))


# Sizes


def test_the_default_has_the_parameters_of_the_tumour_variant():
    assert count_parameters(without_memory()) == pytest.approx(37.61e6, rel=0.005)
    # 37.61 M were measured without the two auxiliary heads
    alone = without_memory(deep_supervision=False)
    assert count_parameters(alone) == pytest.approx(37.61e6, rel=0.0005)


def test_the_default_computes_as_much_as_the_reference():
    # The authors' own network, counted by the same counter, with three classes in inference.
    assert count_flops(without_memory(), (1, 4, 128, 128, 128)) == 127_401_984_000


@pytest.mark.parametrize("patch", [(64, 128, 128), (128, 128, 128)])
def test_the_synapse_options_have_the_parameters_of_the_synapse_variant(patch):
    model = without_memory(patch=patch, **SYNAPSE)
    assert count_parameters(model) == pytest.approx(149.54e6, rel=0.005)


def test_the_tiny_options_make_a_tiny_network():
    assert count_parameters(tiny(patch=(32, 32, 32))) < 200_000


# Windows


def test_windows_are_cut_and_put_together_again():
    maps = torch.randn(2, 4, 6, 10, 3)
    tokens = partition(maps, (2, 3, 5))
    assert tokens.shape == (2, 2 * 2 * 2, 30, 3)
    # window (1, 0, 1), its token (1, 2, 3)
    assert torch.equal(tokens[1, 5, 28], maps[1, 3, 2, 8])
    assert torch.equal(assemble(tokens, (4, 6, 10), (2, 3, 5)), maps)


def test_shifted_windows_are_cut_and_put_together_again():
    windows = Windows((4, 6, 10), (2, 3, 5)).half_shifted()
    assert windows.shift == (1, 1, 2)
    maps = torch.randn(2, 4, 6, 10, 3)
    assert torch.equal(windows.split(maps)[1, 0, 0], maps[1, 1, 1, 2])
    assert torch.equal(windows.join(windows.split(maps)), maps)


def test_a_window_that_covers_an_axis_is_not_shifted_along_it():
    assert Windows((8, 4, 12), (4, 4, 4)).half_shifted().shift == (2, 0, 2)


def test_every_difference_of_position_has_a_number_of_its_own():
    window = (2, 3, 4)
    index = relative_index(window)
    positions = list(itertools.product(*map(range, window)))
    numbers = {}
    for (row, one), (column, other) in itertools.product(enumerate(positions), repeat=2):
        difference = tuple(a - b for a, b in zip(one, other, strict=True))
        numbers.setdefault(difference, set()).add(int(index[row, column]))
    assert all(len(found) == 1 for found in numbers.values())
    assert set.union(*numbers.values()) == set(range(3 * 5 * 7))


# Attention


def naive(query, key, value, windows, bias, num_heads):
    """Attend over all pairs of the map, one token and one head at a time."""
    positions = list(itertools.product(*map(range, windows.size)))
    spans = [2 * side - 1 for side in windows.window]
    query, key, value = (
        maps.flatten(0, 2).unflatten(1, (num_heads, -1)) for maps in (query, key, value)
    )

    def volume(position):
        triples = zip(position, windows.shift, windows.window, strict=True)
        return tuple((place - shift) // side for place, shift, side in triples)

    def number(one, other):
        planes, rows, columns = (
            a - b + side - 1 for a, b, side in zip(one, other, windows.window, strict=True)
        )
        return planes * spans[1] * spans[2] + rows * spans[2] + columns

    found = torch.zeros_like(query)
    for asking, here in enumerate(positions):
        seen = [other for other, there in enumerate(positions) if volume(there) == volume(here)]
        numbers = [number(here, positions[other]) for other in seen]
        for head in range(num_heads):
            scores = key[seen, head] @ query[asking, head] / query.shape[-1] ** 0.5
            weights = torch.softmax(scores + bias[numbers, head], dim=0)
            found[asking, head] = weights @ value[seen, head]
    return found.flatten(1).unflatten(0, windows.size)


GRIDS = [
    Windows((4, 6, 2), (2, 3, 2)),
    Windows((4, 6, 2), (2, 3, 2)).half_shifted(),
    Windows((2, 3, 4), (2, 3, 4)),
]


@pytest.mark.parametrize("windows", GRIDS)
@torch.no_grad()
def test_volume_attention_is_what_a_loop_over_tokens_computes(windows):
    torch.manual_seed(0)
    attention = VolumeAttention(6, windows, num_heads=3)
    torch.nn.init.normal_(attention.attend.bias.weight)
    maps = torch.randn(2, *windows.size, 6)
    expected = [
        attention.output(
            naive(
                *attention.query_key_value(sample).chunk(3, dim=-1),
                windows,
                attention.attend.bias.weight,
                num_heads=3,
            )
        )
        for sample in maps
    ]
    torch.testing.assert_close(attention(maps), torch.stack(expected))


@pytest.mark.parametrize("windows", GRIDS)
@torch.no_grad()
def test_skip_attention_asks_with_the_decoder_and_finds_in_the_encoder(windows):
    torch.manual_seed(0)
    attention = SkipAttention(6, windows, num_heads=2)
    torch.nn.init.normal_(attention.attend.bias.weight)
    decoded, encoded = torch.randn(2, 2, *windows.size, 6)
    expected = [
        attention.output(
            naive(
                asking,
                *attention.key_value(looked_at).chunk(2, dim=-1),
                windows,
                attention.attend.bias.weight,
                num_heads=2,
            )
        )
        for asking, looked_at in zip(decoded, encoded, strict=True)
    ]
    torch.testing.assert_close(attention(decoded, encoded), torch.stack(expected))


@pytest.mark.parametrize("is_shifted", [False, True])
@torch.no_grad()
def test_a_block_computes_what_monais_swin_block_does(is_shifted):
    torch.manual_seed(0)
    windows = Windows((8, 4, 12), (4, 4, 4))
    windows = windows.half_shifted() if is_shifted else windows
    shift = (2, 2, 2) if is_shifted else (0, 0, 0)
    theirs = SwinTransformerBlock(12, 3, window_size=(4, 4, 4), shift_size=shift).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    block = TransformerBlock(VolumeAttention(12, windows, num_heads=3), 12, drop_path=0.1).eval()
    block.norm.load_state_dict(theirs.norm1.state_dict())
    block.mlp[0].load_state_dict(theirs.norm2.state_dict())
    block.mlp[1].load_state_dict(theirs.mlp.linear1.state_dict())
    block.mlp[3].load_state_dict(theirs.mlp.linear2.state_dict())
    block.attention.query_key_value.load_state_dict(theirs.attn.qkv.state_dict())
    block.attention.output.load_state_dict(theirs.attn.proj.state_dict())
    block.attention.attend.bias.weight.copy_(theirs.attn.relative_position_bias_table)
    maps = torch.randn(2, *windows.size, 12)
    mask = compute_mask([*windows.size], (4, 4, 4), windows.shift, maps.device)
    torch.testing.assert_close(block(maps), theirs(maps, mask), rtol=1e-4, atol=1e-4)


def test_the_shift_lets_no_border_look_at_the_opposite_one():
    torch.manual_seed(0)
    windows = Windows((8, 4, 12), (4, 4, 4)).half_shifted()
    block = TransformerBlock(VolumeAttention(6, windows, num_heads=2), 6, drop_path=0.0)
    maps = torch.randn(1, *windows.size, 6, requires_grad=True)
    block(maps)[0, 0, 0, 0].sum().backward()
    seen = maps.grad[0].abs().sum(-1) > 0
    # half a window at the border, and all of the axis that one window covers
    expected = torch.zeros(windows.size, dtype=torch.bool)
    expected[:2, :, :2] = True
    assert torch.equal(seen, expected)


def test_in_the_bottleneck_every_token_sees_every_other():
    model = tiny()
    for level, block in itertools.product((2, 3), (0, 1)):
        windows = model.encoder.stages[level][block].attention.windows
        assert windows.window == windows.size == tuple(side // (2 * 2**level) for side in PATCH)


def test_a_block_adds_both_sources_to_what_it_finds():
    windows = Windows((2, 3, 4), (2, 3, 4))
    block = TransformerBlock(SkipAttention(6, windows, num_heads=2), 6, drop_path=0.0)
    for layer in (block.attention.output, block.mlp[3]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    decoded, encoded = torch.randn(2, 2, *windows.size, 6)
    torch.testing.assert_close(block(decoded, encoded), decoded + encoded)


# The network


def test_the_output_is_of_the_size_of_the_image():
    logits = tiny()(image())
    assert logits.final.shape == (2, 3, *PATCH)
    assert [scale.shape for scale in logits.scales] == [(2, 3, *PATCH)] * 2
    assert logits.ratios == (0.25, 0.5)


def test_tokens_may_be_longer_along_one_axis():
    model = tiny(embedding=(2, 4, 4), patch=(16, 64, 32))
    assert model(image((16, 64, 32), batch=1)).final.shape == (1, 3, 16, 64, 32)


def test_the_coarsest_auxiliary_prediction_comes_first():
    model = tiny().eval()
    assert [head.in_channels for head in model.auxiliary] == [24, 12]
    assert model.final.in_channels == 6


def test_every_parameter_learns_in_a_training_step():
    model = tiny()
    logits = model(image())
    generator = torch.Generator().manual_seed(2)
    sum(
        (plane * torch.randn(plane.shape, generator=generator)).mean()
        for plane in (logits.final, *logits.scales)
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_inference_predicts_once():
    logits = tiny().eval()(image())
    assert logits.scales == logits.ratios == ()


def test_without_deep_supervision_training_predicts_once_too():
    model = tiny(deep_supervision=False)
    logits = model(image())
    assert logits.scales == logits.ratios == ()
    assert len(model.auxiliary) == 0


def test_branches_are_dropped_in_training_alone_and_the_more_the_later():
    model = tiny(drop_path=0.2)
    encoder = [block.drop.p for stage in model.encoder.stages for block in stage]
    decoder = [
        block.drop.p for stage in model.decoder.stages for block in (stage.join, stage.refine)
    ]
    assert encoder == pytest.approx([0.2 * block / 7 for block in range(8)])
    assert decoder == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2])
    with torch.no_grad():
        model.decoder.stages[-1].refine.drop.p = 0.5
        outputs = [model(image()).final for _ in range(4)]
        assert any(not torch.equal(output, outputs[0]) for output in outputs)
        model.eval()
        assert torch.equal(model(image()).final, model(image()).final)


def test_samples_of_a_batch_do_not_touch_each_other():
    model, batch = tiny().eval(), image()
    with torch.no_grad():
        together, alone = model(batch).final, model(batch[1:]).final
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_training_step_in_half_precision_predicts_about_the_same_and_learns():
    model = tiny()
    exact = model(image()).final.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(image())
    assert logits.final.dtype == torch.bfloat16
    assert (logits.final - exact).std() < 0.05 * exact.std()
    sum(plane.float().square().mean() for plane in (logits.final, *logits.scales)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "given", "multiple"),
    [
        ({"patch": (48, 128, 128)}, "48 x 128 x 128", "32 x 32 x 32"),
        ({"patch": (32, 32, 32)}, "32 x 32 x 32", "32 x 32 x 32"),
        ({"patch": (24, 64, 64), **TINY}, "24 x 64 x 64", "16 x 16 x 16"),
        ({"patch": (64, 80, 128), **SYNAPSE}, "64 x 80 x 128", "16 x 32 x 32"),
    ],
)
def test_a_patch_that_does_not_divide_is_refused_in_a_line(options, given, multiple):
    with pytest.raises(InputError, match=f"--crop/--depth: .*{given}.* {multiple}") as caught:
        NnFormer(num_classes=3, **options)
    assert "\n" not in str(caught.value)


def test_volumes_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(32, 48, 48\)"):
        tiny()(image((32, 48, 48)))


@pytest.mark.skipif(
    not os.environ.get("FEDUNETMM_SLOW"), reason="a step of the whole network; set FEDUNETMM_SLOW"
)
def test_the_whole_network_takes_a_step():
    model = NnFormer(num_classes=3, drop_path=0.0)
    logits = model(image((128, 128, 128), batch=1))
    sum(plane.square().mean() for plane in (logits.final, *logits.scales)).backward()
    assert logits.final.shape == (1, 3, 128, 128, 128)
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
