"""What travels between server and clients, and how many bytes it takes."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from training.federated.aggregate import State

DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of floating-point tensors on their way, by the name that `--exchange` knows."""


def narrow(state: State, exchange: str) -> dict[str, Tensor]:
    """Prepare tensors for the way: float32 becomes the type of the exchange."""
    return {
        name: tensor.to(DTYPES[exchange]) if tensor.dtype == torch.float32 else tensor
        for name, tensor in state.items()
    }


def widen(sent: State) -> dict[str, Tensor]:
    """Take what `narrow` gave: bfloat16 becomes float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        for name, tensor in sent.items()
    }


def narrow_change(state: State, start: State, exchange: str) -> dict[str, Tensor]:
    """Prepare a trained network for the way to the server.

    In bfloat16 it is the change that is sent: one step of training changes a weight by less than the
    weight's last bit in bfloat16, and would be lost.

    Args:
        state: The trained network.
        start: What the client got, after `widen`.
        exchange: A key of `DTYPES`.
    """
    if exchange == "fp32":
        return dict(state)
    changes = {
        name: tensor - start[name] if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    return narrow(changes, exchange)


def widen_change(sent: State, start: State, exchange: str) -> dict[str, Tensor]:
    """Take what `narrow_change` gave: the trained network.

    Tensors that are not as in the model are left as they came, for `find_fault` to name.

    Args:
        sent: From `narrow_change`.
        start: What the changes are added to: what was sent, or the more exact network behind it.
        exchange: A key of `DTYPES`.
    """
    if exchange == "fp32":
        return dict(sent)
    return {
        name: start[name] + tensor
        if tensor.is_floating_point() and name in start and start[name].shape == tensor.shape
        else tensor
        for name, tensor in widen(sent).items()
    }


def count_bytes(*states: State) -> int:
    """Count the bytes of tensors on their way."""
    return sum(tensor.nbytes for state in states for tensor in state.values())
