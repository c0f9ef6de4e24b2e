"""Where to compute, in which precision, and with what memory."""

import ctypes
import sys
from typing import Final

import torch
from torch import nn

from cache_schema.errors import InputError

M_TRIM_THRESHOLD: Final = -1
M_MMAP_MAX: Final = -4
"""Parameters of glibc's mallopt(3)."""


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there.

    Raises:
        InputError: If the device is unknown or not on this machine.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise InputError(
            f"--device {name} cannot be used here ({reason}); try --device auto"
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn `auto`, `float32` or `bfloat16` into the type of the network's arithmetic."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def compile_where_it_pays(model: nn.Module, choice: str, device: torch.device) -> None:
    """Let torch.compile fuse a network's forward pass in place; parameters keep their names.

    On a GPU it saves launches and memory traffic; on a CPU compiling takes longer than most runs.
    """
    if choice == "on" or (choice == "auto" and device.type == "cuda"):
        model.compile()


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep the memory of a training step on the CPU for the next one.

    glibc maps every large tensor anew and returns it at once; the system then zeroes gigabytes of
    pages in each step. The results have the same bits.
    """
    if device.type == "cpu" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
