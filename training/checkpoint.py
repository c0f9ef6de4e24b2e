"""Weights on disk: safetensors, never pickles, replaced in one step."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache_schema.errors import InputError
from cache_schema.files import write_atomically

WEIGHTS_NAME: Final = "model.safetensors"
"""The network after the last finished round or epoch."""

RESUME_NAME: Final = "resume.safetensors"
"""All that going on needs, in one file: the network, what optimiser or strategy keep, and the position."""


def save_weights(run: Path, state: Mapping[str, Tensor], *, round_number: int) -> None:
    """Replace a run's weights by those after a round; the old ones stay whole until then.

    Raises:
        InputError: If the disk is full or cannot be written; the old weights are still there.
    """
    _replace(run / WEIGHTS_NAME, state, {"round": str(round_number)})


def load_weights(run: Path) -> tuple[dict[str, Tensor], int]:
    """Read a run's weights.

    Returns:
        Tensors by name, and the round after which they were saved.

    Raises:
        InputError: If there are none, or the file is damaged.
    """
    tensors, metadata = _read(run / WEIGHTS_NAME)
    return tensors, int(metadata["round"])


def save_resume(
    run: Path, groups: Mapping[str, Mapping[str, Tensor]], position: Mapping[str, Any]
) -> None:
    """Replace the checkpoint from which a run goes on, all of it in one step.

    Args:
        run: Folder of the run.
        groups: Tensors by name, such as the network's and the optimiser's, by the name of the group.
        position: Anything that JSON can express.

    Raises:
        InputError: If the disk is full or cannot be written; the old checkpoint is still there.
    """
    tensors = {
        f"{group}/{name}": tensor
        for group, state in groups.items()
        for name, tensor in state.items()
    }
    _replace(run / RESUME_NAME, tensors, {"position": json.dumps(position)})


def load_resume(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read the checkpoint from which a run goes on.

    Returns:
        Groups of tensors and the position, or None if there is no checkpoint yet.

    Raises:
        InputError: If the file is damaged.
    """
    if not (run / RESUME_NAME).exists():
        return None
    tensors, metadata = _read(run / RESUME_NAME)
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        group, own_name = name.split("/", maxsplit=1)
        groups[group][own_name] = tensor
    return groups, json.loads(metadata["position"])


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Take an optimiser's moments, by parameter; rates follow from the position."""
    return {
        f"{index}/{name}": tensor
        for index, moment in optimizer.state_dict()["state"].items()
        for name, tensor in moment.items()
    }


def fill_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that `moments_of` took."""
    moments: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        index, key = name.split("/")
        moments[int(index)][key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(moments), "param_groups": groups})


def save_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Replace a file of tensors in one step.

    Raises:
        InputError: If the disk is full or cannot be written; the old file is still there.
    """
    _replace(path, state, {"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors.

    Raises:
        InputError: If it is not there or damaged.
    """
    return _read(path)[0]


def _replace(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata
    )
    advice = "what was saved before is whole: make room and go on with --resume"
    write_atomically(path, content, advice=advice)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); the run has not finished its first round, or train again"
        ) from error
    if not metadata:
        raise InputError(f"{path} was not written by this program: it does not tell its round")
    return tensors, metadata
