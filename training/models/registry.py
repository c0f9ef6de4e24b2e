"""The networks that `--model` knows."""

from collections.abc import Callable
from typing import Any

from torch import nn

from cache_schema.errors import InputError
from training.models.unetmm.network import UNetMM

MODELS: dict[str, Callable[..., nn.Module]] = {"unetmm": UNetMM}
"""Every network by its name on the command line; called with `num_classes` and its own options."""


def build_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:  # noqa: ANN401
    """Build a network with random weights.

    Args:
        name: A key of `MODELS`.
        num_classes: Planes of its output.
        options: Passed on to the network; each network has its own.

    Raises:
        InputError: If there is no such network; the message lists those that there are.
    """
    if name not in MODELS:
        raise InputError(f"--model {name}: unknown; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name](num_classes=num_classes, **options)
