"""The wrapped networks against MONAI's own, their published sizes, and what they refuse."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from cache_schema.errors import InputError
from training.losses import deep_supervision_loss
from training.models import monai_networks
from training.models.monai_networks import TINY
from training.models.registry import build_model
from training.models.size import count_flops, count_parameters

nets = pytest.importorskip("monai.networks.nets")
pytest.importorskip("einops")

NAMES = tuple(TINY)
PATCH = (32, 64, 96)


def build(name, patch=PATCH, **options):
    torch.manual_seed(0)
    builder = getattr(monai_networks, name)
    return builder(num_classes=3, patch=patch, **options)


def step(network, patch=PATCH, *, batch=2, dtype=torch.float32):
    """Gradients of one training step."""
    target = (torch.rand(batch, 3, *patch) > 0.8).to(dtype)
    logits = network(torch.randn(batch, 4, *patch, dtype=dtype))
    deep_supervision_loss(logits, target).backward()
    return logits


def without_gradient(network, least=0.0):
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None
        or not parameter.grad.isfinite().all()
        or parameter.grad.abs().max() <= least
    ]


def monais(name, patch):
    """The tiny networks as a user of MONAI writes them."""
    planes = {"in_channels": 4, "out_channels": 3}
    if name == "unet3d":
        return nets.BasicUNet(3, 4, 3, (4, 4, 6, 8, 10, 4), act="relu", norm="batch", bias=False)
    if name == "resunet3d":
        kernels, strides = [3, 3, 3, 3, 3], [1, 2, 2, 2, 2]
        filters = [4, 4, 6, 8, 10]
        return nets.DynUNet(3, 4, 3, kernels, strides, strides[1:], filters=filters, res_block=True)
    if name == "unetr":
        return nets.UNETR(
            img_size=patch, feature_size=2, hidden_size=8, mlp_dim=16, num_heads=2, **planes
        )
    return nets.SwinUNETR(
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 4),
        norm_name=("group", {"num_groups": 4}),
        **planes,
    )


@pytest.mark.parametrize(
    ("name", "published_m"),
    [("unet3d", 16.32), ("resunet3d", 113.74), ("unetr", 102.45), ("swinunetr", 62.19)],
)
def test_parameters_are_within_half_a_percent_of_the_published(name, published_m):
    model = getattr(monai_networks, name)(num_classes=3)
    assert count_parameters(model) == pytest.approx(published_m * 1e6, rel=0.005)


def test_swin_unetr_computes_772_billion_multiply_adds():
    model = monai_networks.swinunetr(num_classes=3)
    assert round(count_flops(model, (1, 4, 128, 128, 128)) / 2e9) == 772


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_that_of_monais_own_network_with_the_same_weights(name):
    ours, theirs = build(name, **TINY[name]).eval(), monais(name, PATCH).eval()
    loaded = theirs.load_state_dict(ours.network.state_dict(), strict=False)
    assert loaded.unexpected_keys == []
    assert all("cross_attn" in key for key in loaded.missing_keys)
    image = torch.randn(2, 4, *PATCH)
    with torch.no_grad():
        logits = ours(image)
        assert torch.equal(logits.final, theirs(image))
    assert logits.final.shape == (2, 3, *PATCH)
    assert logits.scales == ()


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient_that_is_more_than_rounding(name):
    # The gradient of a bias in front of a normalisation is 0 but for rounding, below 1e-16 here.
    patch = (32, 32, 64)
    network = build(name, patch, **TINY[name]).double()
    step(network, patch, batch=1, dtype=torch.float64)
    assert without_gradient(network, least=1e-12) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_network_trains_on_a_single_patch_of_32_voxels_a_side(name):
    network = build(name, (32, 32, 32), **TINY[name])
    step(network, (32, 32, 32), batch=1)
    assert without_gradient(network) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_in_bfloat16_is_finite_and_close_to_single_precision(name):
    network = build(name, **TINY[name]).eval()
    image = torch.randn(1, 4, *PATCH)
    with torch.no_grad():
        expected = network(image).final
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(image).final
    assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(network.train(), batch=1)
    assert without_gradient(network) == []


def test_checkpoints_in_swin_unetr_change_the_memory_and_not_the_gradients():
    gradients, kept = [], []
    for use_checkpoint in (False, True):
        network = build("swinunetr", **TINY["swinunetr"], use_checkpoint=use_checkpoint)
        sizes = []
        with saved_tensors_hooks(lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t):
            step(network, batch=1)
        gradients.append([parameter.grad for parameter in network.parameters()])
        kept.append(sum(sizes))
    assert kept[1] < kept[0]
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["unet3d", "resunet3d", "unetr"])
def test_a_tiny_network_has_less_than_200_thousand_parameters(name):
    assert count_parameters(build(name, **TINY[name])) < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_options_have_plain_types_and_tiny_names_some_of_them(name):
    parameters = inspect.signature(getattr(monai_networks, name)).parameters
    plain = {int, float, str, bool}
    assert {each.kind for each in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert set(TINY[name]) <= set(parameters) - {"num_classes", "patch"}
    for each in parameters.values():
        parts = getattr(each.annotation, "__args__", (each.annotation,))
        assert set(parts) <= plain


@pytest.mark.parametrize(
    ("name", "patch", "options", "advice"),
    [
        ("unet3d", (128, 128, 120), {}, "multiples of 16, at least one of them 32 or more"),
        ("unet3d", (16, 16, 16), {}, "multiples of 16, at least one of them 32 or more"),
        ("resunet3d", (24, 64, 64), {}, "multiples of 16, at least one of them 32 or more"),
        ("resunet3d", (16, 16, 16), {}, "multiples of 16, at least one of them 32 or more"),
        ("unetr", (32, 40, 32), {}, "multiples of 16"),
        ("unetr", (0, 32, 32), {}, "multiples of 16"),
        ("swinunetr", (48, 64, 64), {}, "multiples of 32, at least one of them 64 or more"),
        ("swinunetr", (32, 32, 32), {}, "multiples of 32, at least one of them 64 or more"),
        ("swinunetr", (48, 64, 64), TINY["swinunetr"], "multiples of 32"),
    ],
)
def test_a_patch_that_does_not_fit_is_one_line_with_what_does(name, patch, options, advice):
    size = " x ".join(str(side) for side in patch)
    with pytest.raises(InputError) as caught:
        build(name, patch, **options)
    assert str(caught.value) == (
        f"--crop/--depth: {name} cannot take patches of {size}; give {advice}"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "unetr",
            {"hidden_size": 100},
            " unetr cannot be built with .*hidden_size=100.*divisible by",
        ),
        (
            "swinunetr",
            {"feature_size": 20, "num_heads": (1, 1, 1, 1)},
            " swinunetr cannot be built with .*divisible by 12",
        ),
        (
            "swinunetr",
            {"feature_size": 12, "norm_groups": 5},
            " swinunetr cannot be built with .*divisible",
        ),
        (
            "swinunetr",
            {"num_heads": (3, 6, 12, 25)},
            "-option num_heads: swinunetr needs divisors .*feature_size=48, not .*25",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(name, options, message):
    with pytest.raises(InputError, match=f"^--model{message}") as caught:
        build_model(name, num_classes=3, patch=PATCH, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_turned_by_its_axes_is_refused(name):
    with pytest.raises(ValueError, match=r"images of \(96, 64, 32\).*\(32, 64, 96\)"):
        build(name, **TINY[name])(torch.randn(1, 4, 96, 64, 32))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_monai_is_one_line_that_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(InputError) as caught:
        build(name)
    assert str(caught.value) == (
        f"--model {name} needs the package monai: python -m pip install 'fedunetmm[models]'"
    )


def test_einops_is_missed_only_by_the_networks_that_use_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    for name in ("unetr", "swinunetr"):
        with pytest.raises(InputError, match=rf"^--model {name} needs the package einops: .*pip"):
            build(name, **TINY[name])
    for name in ("unet3d", "resunet3d"):
        assert isinstance(build(name, **TINY[name]), nn.Module)


def test_the_module_is_imported_without_monai():
    code = "import sys, training.models.monai_networks; sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not os.environ.get("FEDUNETMM_SLOW"), reason="minutes and up to 12 GB")
@pytest.mark.parametrize("name", NAMES)
def test_the_default_trains_on_a_patch_of_128_voxels_a_side(name):
    options = {"use_checkpoint": True} if name == "swinunetr" else {}
    network = build(name, (128, 128, 128), **options)
    logits = step(network, (128, 128, 128), batch=1)
    assert logits.final.shape == (1, 3, 128, 128, 128)
    assert without_gradient(network) == []
