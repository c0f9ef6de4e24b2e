"""Weights on disk: safetensors, never pickles, replaced in one step."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cache_schema.documents import digest_of, parse_object, reason_of
from cache_schema.errors import InputError
from training.config import CONFIG_NAME, is_of_earlier_release, read_config
from training.tensor_file import read_tensors, write_tensors

WEIGHTS_NAME: Final = "model.safetensors"
"""The network after the last finished round or epoch."""

RESUME_NAME: Final = "resume.safetensors"
"""All that going on needs, in one file: the network, what optimiser or strategy keep, and the position."""

BEGIN_ANEW: Final = "bring the file back, or begin another run"
"""What to do about a checkpoint that cannot be used."""


def save_weights(run: Path, state: Mapping[str, Tensor], *, round_number: int) -> None:
    """Replace a run's weights by those after a round; the old ones stay whole until then.

    Raises:
        InputError: If the disk is full or cannot be written; the old weights are still there.
    """
    _save(run / WEIGHTS_NAME, state, {"round": str(round_number)})


def load_weights(run: Path) -> tuple[dict[str, Tensor], int]:
    """Read a run's weights.

    Returns:
        Tensors by name, and the round after which they were saved.

    Raises:
        InputError: If there are none, or the file is damaged.
    """
    advice = "the run has not finished its first round, or its command with --resume writes the file anew"
    tensors, metadata = _load(run / WEIGHTS_NAME, "round", advice)
    if not (number := metadata["round"]).isdecimal():
        raise InputError(f"{run / WEIGHTS_NAME} was saved after round {number[:20]}; {advice}")
    return tensors, int(number[:20])


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
    _save(run / RESUME_NAME, tensors, {"position": json.dumps(position)})


def load_resume(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read the checkpoint from which a run goes on.

    Returns:
        Groups of tensors and the position, or None if there is no checkpoint yet.

    Raises:
        InputError: If the file is damaged.
    """
    if not (run / RESUME_NAME).exists():
        return None
    tensors, metadata = _load(run / RESUME_NAME, "position", BEGIN_ANEW)
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    with fitting(run):
        for name, tensor in tensors.items():
            group, own_name = name.split("/", maxsplit=1)
            groups[group][own_name] = tensor
        return groups, parse_object(metadata["position"])


@contextmanager
def fitting(run: Path) -> Iterator[None]:
    """Name the checkpoint of a run if what it holds is not what the run needs.

    Raises:
        InputError: In place of what taking it apart raises.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{run / RESUME_NAME} does not fit the run ({reason_of(error)}); {BEGIN_ANEW}"
        ) from error


def add_digests(run: Path) -> None:
    """Write the files of a run again that an earlier release wrote without a digest.

    Raises:
        InputError: If the checkpoint is damaged, or one cannot be written.
    """
    if (run / RESUME_NAME).exists():
        tensors, metadata = _load(run / RESUME_NAME, "position", BEGIN_ANEW)
        _save(run / RESUME_NAME, tensors, {"position": metadata["position"]})
    with suppress(InputError):  # the checkpoint holds all that going on needs
        state, number = load_weights(run)
        save_weights(run, state, round_number=number)


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
    write_tensors(path, state, {"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors.

    Raises:
        InputError: If it is not there or damaged.
    """
    return read_tensors(path, "format", is_sealed=False, advice=BEGIN_ANEW)[0]


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    write_tensors(path, tensors, {**metadata, "settings": _settings_of(path.parent)})


def _load(path: Path, key: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of a run, of its own settings.

    Raises:
        InputError: If it is damaged, or that of another run.
    """
    run = path.parent
    is_sealed = (run / CONFIG_NAME).exists() and not is_of_earlier_release(run)
    tensors, metadata = read_tensors(path, key, is_sealed=is_sealed, advice=advice)
    own, theirs = _settings_of(run), metadata.get("settings")
    if own and theirs and own != theirs:
        raise InputError(f"{path} was written by a run with other settings than {run}; {advice}")
    return tensors, metadata


def _settings_of(run: Path) -> str:
    """Give the digest of what decides a run's weights, or nothing where no settings can be read."""
    try:
        config = read_config(run)
        return digest_of(config.model_dump(mode="json", exclude={"device", "loader_workers"}))
    except InputError:
        return ""
