"""Where to compute, in which precision, and with what memory."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import gettempdir
from typing import Final

import torch
from torch import nn

from cache_schema.errors import InputError
from cache_schema.targets import takes_locks

M_TRIM_THRESHOLD: Final = -1
M_MMAP_MAX: Final = -4
"""Parameters of glibc's mallopt(3)."""


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there.

    Raises:
        InputError: If the device is unknown or not on this machine, or there are several.
    """
    if "," in name:
        raise InputError(f"--device {name}: only `train fed` takes several devices; give one")
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


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """Turn one device or several of one kind, such as `cuda:0,cuda:1`, into devices that are there.

    Raises:
        InputError: If one is unknown or not on this machine, or their kinds differ.
    """
    devices = tuple(choose_device(name) for name in names.split(","))
    if len({device.type for device in devices}) > 1:
        raise InputError(
            f"--device {names}: devices of different kinds give different bits; list one kind only"
        )
    return devices


def device_kind(names: str) -> str:
    """Tell what kind of device such as `cpu` or `cuda` a setting means, whether it is there or not."""
    first = names.split(",", maxsplit=1)[0]
    return (choose_device(first) if first == "auto" else torch.device(first)).type


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn `auto`, `float32` or `bfloat16` into the type of the network's arithmetic."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def fork_random(device: torch.device) -> AbstractContextManager[None]:
    """Leave the global random state as it was after a block: the CPU's, and that of this GPU alone."""
    devices = [device.index or 0] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def compile_where_it_pays(model: nn.Module, choice: str, device: torch.device) -> None:
    """Let torch.compile fuse a network's passes in place, for training; parameters keep their names.

    On an NVIDIA GPU it saves memory traffic, and replays the kernels of a pass as a CUDA graph instead
    of launching each, which takes the host longer than the arithmetic takes the GPU. A pass then writes
    to the same memory as the one before: what is to outlive a step has to be copied. On a CPU compiling
    takes longer than most runs.

    Raises:
        InputError: If torch.compile cannot work here.
    """
    if choice == "on" or (choice == "auto" and device.type == "cuda"):
        _require_locks()
        model.compile(mode="reduce-overhead" if device.type == "cuda" else "default")


def _require_locks() -> None:
    """Make sure that torch.compile, which locks its files, can keep them where it does.

    Raises:
        InputError: If that file system has no locks.
    """
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or gettempdir())
    if not takes_locks(folder):
        raise InputError(
            f"torch.compile keeps its files in {folder}, on a file system without locks; set TMPDIR to a "
            "folder on a disk of this machine, or train with --compile off"
        )


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
