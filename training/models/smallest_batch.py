"""How few examples at a time a network can be trained on."""

import copy
from typing import Final

import torch
from torch import nn

from cache_schema.errors import InputError
from cache_schema.vocabulary import MODALITIES
from training.config import TrainConfig
from training.models.initial import patch_of
from training.models.patch import spell
from training.models.size import without_memory

LONELY: Final = "Expected more than 1"
"""So PyTorch begins its complaint of a norm layer that is given a single value a channel."""


def smallest_batch(model: nn.Module, config: TrainConfig) -> int:
    """Find the fewest examples that a network can be trained on at a time: 1 or 2.

    Where its smallest feature is a single pixel or voxel, a single example gives BatchNorm one value a
    channel, whose deviation from its mean tells nothing; PyTorch refuses to compute with it. The passes
    run on tensors that have shapes and no memory, where the network can do with such.

    Args:
        model: The network of a run; left as it is.
        config: Of that run.

    Raises:
        InputError: If no number of examples will do, or the run's batches have fewer.
    """
    sides = patch_of(config) or (config.crop, config.crop)
    sizes = (size for size in (1, 2) if _can_train(model, (size, len(MODALITIES), *sides)))
    least = next(sizes, None)
    if least is None:
        raise InputError(
            f"--crop/--depth: {config.model} cannot be trained on {spell(sides)}, from which its norm layers "
            "get a single value a channel; give a larger --crop or --depth"
        )
    if config.batch_size < least:
        raise InputError(
            f"--batch-size {config.batch_size}: {describe_need(config)}; give --batch-size {least} or a "
            "larger --crop"
        )
    return least


def describe_need(config: TrainConfig) -> str:
    """Say why a network needs more than one example at a time."""
    return (
        f"from one example at --crop {config.crop}, a BatchNorm of {config.model} gets a single value a "
        "channel and cannot be trained"
    )


def _can_train(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _pass(model, shape)
    except ValueError as error:
        if LONELY in str(error):
            return False
        raise
    return True


def _pass(model: nn.Module, shape: tuple[int, ...]) -> None:
    try:
        without_memory(model).train()(torch.empty(shape, device="meta"))
    except (NotImplementedError, RuntimeError):  # a network of one's own may look at values
        copy.deepcopy(model).train()(torch.zeros(shape))
