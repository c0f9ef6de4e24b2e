"""What travels between server and clients, and how many bytes it takes."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from training.federated.aggregate import State

DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of floating-point tensors on their way, by the name that `--exchange` knows."""


def download(state: State, exchange: str) -> tuple[dict[str, Tensor], int]:
    """Send tensors from the server to a client.

    Returns:
        What the client gets, in the types that it had, and the bytes that were sent.
    """
    dtype = DTYPES[exchange]
    sent = {name: tensor.to(_narrowed(tensor, dtype)) for name, tensor in state.items()}
    return {name: sent[name].to(tensor.dtype) for name, tensor in state.items()}, _count(sent)


def upload(state: State, start: State, exchange: str) -> tuple[dict[str, Tensor], int]:
    """Send a trained network from a client to the server.

    In bfloat16 it is the change that is sent: one step of training changes a weight by less than the
    weight's last bit in bfloat16, and would be lost.

    Args:
        state: The trained network.
        start: What the client got from the server.
        exchange: A key of `DTYPES`.

    Returns:
        What the server makes of it, and the bytes that were sent.
    """
    if exchange == "fp32":
        return dict(state), _count(state)
    dtype = DTYPES[exchange]
    result, num_bytes = {}, 0
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            result[name], num_bytes = tensor, num_bytes + tensor.nbytes
            continue
        change = (tensor - start[name]).to(dtype)
        result[name] = start[name] + change.to(tensor.dtype)
        num_bytes += change.nbytes
    return result, num_bytes


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.dtype == torch.float32 else tensor.dtype


def _count(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
