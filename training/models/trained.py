"""The network of a run as it was trained, and its size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from cache_schema.errors import InputError
from cache_schema.vocabulary import MODALITIES
from training.checkpoint import WEIGHTS_NAME, load_weights
from training.config import TrainConfig, read_config
from training.models.initial import patch_of, random_model
from training.models.size import count_flops, count_parameters
from training.models.table import SLICE_SHAPE
from training.predict import NotFiniteError


def trained_model(run: Path, config: TrainConfig) -> tuple[nn.Module, int]:
    """Load the network of a run on the CPU, and the round after which it was saved.

    Raises:
        InputError: If the run has no weights, or they do not fit its network or hold NaN.
    """
    model = random_model(config)
    state, round_number = load_weights(run)
    damaged = [name for name, tensor in state.items() if tensor.isnan().any()]
    if damaged:
        others = f" and {len(damaged) - 1} more" if damaged[1:] else ""
        raise InputError(
            f"{run / WEIGHTS_NAME} holds NaN (in {damaged[0]}{others}), so the training has diverged: "
            "train again with a lower --learning-rate, or take another run"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the weights of {run} do not fit its network ({reason})") from error
    return model, round_number


@contextmanager
def naming(weights: Path) -> Iterator[None]:
    """Name the weights with which a network gives what is no number.

    Args:
        weights: Their file, or the run's folder.

    Raises:
        InputError: In place of `NotFiniteError`.
    """
    try:
        yield
    except NotFiniteError as error:
        raise InputError(f"{weights}: {error}") from error


def network_size(run: Path) -> tuple[int, int]:
    """Count the parameters of a run's network, and the FLOPs of one forward pass: of a slice or a patch.

    Raises:
        InputError: If the folder is no run.
    """
    config = read_config(run)
    model = random_model(config)
    patch = patch_of(config)
    shape = SLICE_SHAPE if patch is None else (1, len(MODALITIES), *patch)
    return count_parameters(model), count_flops(model, shape)
