"""The network that a run starts from: a function of its settings alone."""

from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from cache_schema.errors import InputError
from training.config import TrainConfig
from training.models.registry import SETTINGS, build_model, find_network, read_options
from training.models.state_dict import StateDictError, read_state_dict
from training.models.unetmm.encoder import Encoder, load_imagenet_weights
from training.seeds import derive_seed

NUM_CLASSES: Final = 3


def patch_of(config: TrainConfig) -> tuple[int, int, int] | None:
    """Say how many slices, rows and columns a run's network is given at a time.

    Returns:
        None for a network that takes single slices of any size.

    Raises:
        InputError: If the network is unknown.
    """
    if not find_network(config.model).is_3d:
        return None
    return config.depth or config.crop, config.crop, config.crop


def initial_model(config: TrainConfig) -> nn.Module:
    """Build the network of a run as it is before the first round, on the CPU.

    Args:
        config: Names the network, its options, its weights and the seed.

    Returns:
        The same weights for the same settings; global random state is left as it was.

    Raises:
        InputError: If the network is unknown or the weights cannot be had.
    """
    model = random_model(config)
    if config.weights != "none":
        load_encoder_weights(model, config.weights)
    return model


def random_model(config: TrainConfig) -> nn.Module:
    """Build the network of a run with random weights, which weights of a checkpoint may replace.

    Raises:
        InputError: If the network is unknown or has no such option.
    """
    options = _options(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 0))
        return build_model(config.model, num_classes=NUM_CLASSES, **options)


def _options(config: TrainConfig) -> dict[str, Any]:
    """Collect what a network is built with; a setting that it does not know must be as it comes."""
    known = find_network(config.model).parameters
    options = read_options(config.model, config.model_options)
    for name in SETTINGS:
        value = getattr(config, name)
        if name in known:
            options[name] = value
        elif value != TrainConfig.model_fields[name].default:
            raise InputError(f"--{name.replace('_', '-')}: {config.model} has nothing like it")
    if (patch := patch_of(config)) is not None:
        options["patch"] = patch
    elif config.depth is not None:
        raise InputError(f"--depth {config.depth}: {config.model} takes single slices")
    return options


def load_encoder_weights(model: nn.Module, source: str) -> None:
    """Fill the ResNet18 encoder of a network with pretrained weights.

    Args:
        model: Changed in place.
        source: `imagenet`, or the path of a ResNet18 state dict (`.safetensors`, or torch's own).

    Raises:
        InputError: If the network has no such encoder or the weights cannot be read.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise InputError(f"--weights {source}: the network has no ResNet18; give --weights none")
    if source == "imagenet":
        load_imagenet_weights(encoder)
        return
    try:
        state = read_state_dict(Path(source))
        encoder.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    except (StateDictError, RuntimeError) as error:  # the latter of other tensors than ResNet18's
        reason = str(error).partition("\n")[0]
        raise InputError(f"--weights {source}: not a ResNet18 state dict ({reason})") from error
