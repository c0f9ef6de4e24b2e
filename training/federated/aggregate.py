"""Updates of clients to one model: the arithmetic that strategies share."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
"""Tensors by name, on the CPU: a network's parameters and buffers, or what goes with them."""

BLOCK: Final = 2**15
"""Values that are added at a time; PyTorch does not split fewer among threads, which wait for each other."""


@dataclass(frozen=True)
class Update:
    """What a client sends back after its local epochs.

    Attributes:
        client: Who sends it.
        num_examples: Slices that it trained on in an epoch; its weight in FedAvg.
        num_steps: Optimiser steps that it took.
        loss: Mean over these steps.
        state: Its network.
        extras: Whatever else its strategy wants from it, by names of the network's tensors and in their
            shapes.
    """

    client: int
    num_examples: int
    num_steps: int
    loss: float
    state: State
    extras: State = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """What the server knows between two rounds; it is saved after each.

    Attributes:
        model: The global network.
        trainable: Names of its parameters. The rest are buffers, such as BatchNorm's statistics, which
            are averaged and never go through an optimiser: a variance below zero would follow.
        memory: What the strategy keeps.
        round: The last one that is done.
        remembered: For every client that keeps something, the last round whose update was accepted.
    """

    model: State
    trainable: frozenset[str]
    memory: State = field(default_factory=dict)
    round: int = 0
    remembered: Mapping[int, int] = field(default_factory=dict)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy a network's tensors to the CPU, each in the order of its axes, which channels-last is not."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def find_fault(update: Update, reference: State) -> str | None:
    """Say why an update must not be aggregated, or None if it is sound.

    Args:
        update: What a client sent.
        reference: The model that it started from.
    """
    if update.num_examples < 1:
        return f"{update.num_examples} examples"
    if not math.isfinite(update.loss):
        return f"loss is {update.loss}"
    if update.state.keys() != reference.keys():
        odd = sorted(update.state.keys() ^ reference.keys())
        return f"other tensors than the model: {', '.join(odd[:3])}"
    return _find_odd_tensor(update, reference)


def _find_odd_tensor(update: Update, reference: State) -> str | None:
    for name, tensor in update.state.items():
        if tensor.shape != reference[name].shape or tensor.dtype != reference[name].dtype:
            return f"{name} is {tuple(tensor.shape)} {tensor.dtype}, not as in the model"
    for name, tensor in update.extras.items():
        if name not in reference or tensor.shape != reference[name].shape:
            return f"{name} goes along, but the model has no such tensor"
    for name, tensor in (*update.state.items(), *update.extras.items()):
        if tensor.is_floating_point() and not _is_finite(tensor):
            return f"{name} has values that are not finite"
    return None


def _is_finite(tensor: Tensor) -> bool:
    """Look at the sum first: it is finite only if all values are, and ten times as fast to compute."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def weighted_mean(updates: Iterable[tuple[float, State]]) -> dict[str, Tensor]:
    r"""Average networks, $\bar w = \sum_k n_k w_k / \sum_k n_k$, one at a time.

    Only the running sums are held, so memory does not grow with the number of clients, and the
    result depends on the order of the updates only through rounding. Sums are float64 and every
    tensor comes back in its own type. Integer buffers, such as the step counter of BatchNorm, are
    counts: a mean of them means nothing, so the largest is kept.

    Args:
        updates: Weight and network of each client; all with the same names and shapes.

    Returns:
        The mean.

    Raises:
        ValueError: If there is no update, names differ, or a weight is not positive.
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    total = 0.0
    for weight, state in updates:
        if not weight > 0:
            raise ValueError(f"weight {weight} is not positive")
        if sums and state.keys() != sums.keys():
            raise ValueError("updates have different tensors")
        total += weight
        for name, tensor in state.items():
            dtypes[name] = tensor.dtype
            sums[name] = _accumulate(sums.get(name), tensor, weight)
    if not sums:
        raise ValueError("there is no update to aggregate")
    return {
        name: (value / total if value.is_floating_point() else value).to(dtypes[name])
        for name, value in sums.items()
    }


def average(server: Server, updates: Iterable[Update]) -> Server:
    """Take the clients' mean, weighted by numbers of examples, as the next model."""
    mean = weighted_mean((float(update.num_examples), update.state) for update in updates)
    return replace(server, model=mean)


def _accumulate(total: Tensor | None, tensor: Tensor, weight: float) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone() if total is None else torch.maximum(total, tensor)
    if total is None:
        total = torch.zeros(tensor.shape, dtype=torch.float64)
    add_scaled(total, tensor, weight)
    return total


def add_scaled(total: Tensor, tensor: Tensor, weight: float) -> None:
    """Add a tensor times a weight to a sum in float64, in place.

    Block by block: PyTorch converts to float64 into memory of its own first, and a block of that stays
    in the processor's cache, which makes it five to ten times as fast.
    """
    blocks = (each.reshape(-1).split(BLOCK) for each in (total, tensor))
    for part, block in zip(*blocks, strict=True):
        part.add_(block, alpha=weight)
