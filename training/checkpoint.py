"""Weights on disk: safetensors, never pickles, replaced in one step."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache_schema.errors import InputError

WEIGHTS_NAME: Final = "model.safetensors"


def save_weights(run: Path, state: Mapping[str, Tensor], *, round_number: int) -> None:
    """Replace a run's weights by those after a round; the old ones stay whole until then."""
    path = run / WEIGHTS_NAME
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with partial.open("wb") as file:
        file.write(save(tensors, metadata={"round": str(round_number)}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_weights(run: Path) -> tuple[dict[str, Tensor], int]:
    """Read a run's weights.

    Returns:
        Tensors by name, and the round after which they were saved.

    Raises:
        InputError: If there are none, or the file is damaged.
    """
    path = run / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, int(metadata["round"])  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); the run has not finished its first round, or train again"
        ) from error
