"""Weights on disk: safetensors, never pickles, replaced in one step."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache_schema.errors import InputError

WEIGHTS_NAME: Final = "model.safetensors"
"""The network after the last finished round or epoch."""

RESUME_NAME: Final = "resume.safetensors"
"""The network in the middle of central training, with its optimiser and where it stands."""

_MODEL, _OPTIMIZER = "model/", "optimizer/"


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
    run: Path,
    model: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, Any],
) -> None:
    """Replace the checkpoint from which central training goes on, all of it in one step.

    Args:
        run: Folder of the run.
        model: The network's tensors.
        optimizer: Whose moments are kept; rates follow from the position.
        position: Anything that JSON can express.

    Raises:
        InputError: If the disk is full or cannot be written; the old checkpoint is still there.
    """
    moments = {
        f"{_OPTIMIZER}{index}/{name}": tensor
        for index, moment in optimizer.state_dict()["state"].items()
        for name, tensor in moment.items()
    }
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.items()} | moments
    _replace(run / RESUME_NAME, tensors, {"position": json.dumps(position)})


def load_resume(
    run: Path, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the checkpoint of central training and fill an optimiser with its moments.

    Returns:
        The network's tensors and the position, or None if there is no checkpoint yet.

    Raises:
        InputError: If the file is damaged.
    """
    if not (run / RESUME_NAME).exists():
        return None
    tensors, metadata = _read(run / RESUME_NAME)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split("/")
            moments.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    model = {n.removeprefix(_MODEL): t for n, t in tensors.items() if n.startswith(_MODEL)}
    return model, json.loads(metadata["position"])


def _replace(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata
    )
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error.strerror}); what was saved before is whole: make room "
            "and go on with --resume"
        ) from error


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
