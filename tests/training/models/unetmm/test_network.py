"""The whole network: shapes, size against the paper, gradients, reproducibility."""

import pytest
import torch
from torch.testing import assert_close

from training.losses import deep_supervision_loss
from training.models.logits import SCALE_RATIOS
from training.models.size import count_flops, count_parameters
from training.models.unetmm.network import UNetMM


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNetMM().eval()


@pytest.mark.parametrize("plane", [(224, 224), (64, 64), (64, 96)])
def test_all_outputs_have_the_size_of_the_image(network, plane):
    with torch.no_grad():
        logits = network(torch.randn(1, 4, *plane))
    assert logits.final.shape == (1, 3, *plane)
    assert [scale.shape for scale in logits.scales] == [(1, 3, *plane)] * 6
    assert len(SCALE_RATIOS) == 6


def test_a_size_that_is_no_multiple_of_32_is_refused(network):
    with pytest.raises(ValueError, match=r"64 x 80.*multiples of 32"):
        network(torch.zeros(1, 4, 64, 80))


def test_parameters_are_within_one_percent_of_the_paper(network):
    assert count_parameters(network) == pytest.approx(20.5e6, rel=0.01)


def test_flops_are_within_one_percent_of_the_paper(network):
    assert count_flops(network, (1, 4, 224, 224)) == pytest.approx(69.01e9, rel=0.01)


def test_slices_are_segmented_independently_in_evaluation(network):
    image = torch.randn(3, 4, 64, 64)
    with torch.no_grad():
        together, alone = network(image).final[1:2], network(image[1:2]).final
    assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_evaluation_is_deterministic(network):
    image = torch.randn(2, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(image).final, network(image).final)


def test_the_same_seed_builds_the_same_weights_under_the_same_names(network):
    torch.manual_seed(0)
    again = UNetMM().state_dict()
    assert list(again) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    network = UNetMM(fuse_en2=True)
    target = (torch.rand(2, 3, 64, 64) > 0.8).float()
    deep_supervision_loss(network(torch.randn(2, 4, 64, 64)), target).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_small_step_against_the_gradient_lowers_the_loss():
    torch.manual_seed(0)
    network = UNetMM(dropout=0.0)
    image, target = torch.randn(2, 4, 64, 64), (torch.rand(2, 3, 64, 64) > 0.8).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = deep_supervision_loss(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_position_embeddings_enter_at_the_last_level_or_at_all():
    kinds = {
        choice: [fusion.position.kind for fusion in UNetMM(3, "3d", choice).fusion.values()]
        for choice in ("last", "all")
    }
    assert kinds == {"last": ["none"] * 4 + ["3d"], "all": ["3d"] * 5}


def test_en2_has_cross_modal_attention_only_on_request(network):
    assert network.fusion["en2"].cross_modal is None
    assert all(network.fusion[level].cross_modal for level in ("en4", "en5", "en6", "en7"))
    added = count_parameters(UNetMM(fuse_en2=True)) - count_parameters(network)
    # q, k, v, o: 4 (c^2 + c); fuse: 3c^2 + c; MLP: 2c^2 + 2c and 2c^2 + c; c = 64
    assert added == 11 * 64**2 + 8 * 64


def test_the_number_of_classes_is_the_number_of_planes():
    assert UNetMM(num_classes=2).eval()(torch.zeros(1, 4, 32, 32)).final.shape == (1, 2, 32, 32)
