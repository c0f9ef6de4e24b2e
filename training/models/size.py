"""How large a network is and how much it computes."""

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training can change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the floating-point operations of one forward pass, two a multiply-add.

    Convolutions, matrix products and attention count; element-wise work does not. Nothing is
    computed: the pass runs on tensors that have shapes and no memory.

    Args:
        model: Left as it is.
        shape: Of the input, batch and modalities included.
    """
    counter = FlopCounterMode(display=False)
    # The fused attention kernel of a CPU has no FLOP formula; the plain one is matrix products.
    with sdpa_kernel(SDPBackend.MATH), counter:
        without_memory(model).eval()(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops())


def without_memory(model: nn.Module) -> nn.Module:
    """Copy the structure of a network, with tensors that have shapes only."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)
