"""The networks that `--model` knows."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from torch import nn

from cache_schema.errors import InputError
from training.models import monai_networks, transbts, unetrpp
from training.models.nnformer import network as nnformer
from training.models.unetmm.network import UNetMM

SETTINGS: Final = ("position", "position_levels", "fuse_en2")
"""Parameters of networks that are settings of a run, with command line options of their own."""


@dataclass(frozen=True)
class Network:
    """A network that can be trained on shards.

    Attributes:
        build: Called with `num_classes`, in three dimensions also with `patch`, the slices, rows and
            columns that it is given; any other parameter is an option of its own.
        is_3d: Takes patches of volumes instead of slices.
        tiny: Options that make it small enough to try a whole run in seconds.
    """

    build: Callable[..., nn.Module]
    is_3d: bool = False
    tiny: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What `build` can be called with by name."""
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.build, eval_str=True).parameters
        return {name: each for name, each in parameters.items() if each.kind in kinds}

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """What `--model-option` can set: parameters that nothing else decides on."""
        decided = ("num_classes", "patch", *SETTINGS)
        return {name: each for name, each in self.parameters.items() if name not in decided}


MODELS: Final[dict[str, Network]] = {
    "unetmm": Network(UNetMM),
    "unet3d": Network(monai_networks.unet3d, is_3d=True, tiny=monai_networks.TINY["unet3d"]),
    "resunet3d": Network(
        monai_networks.resunet3d, is_3d=True, tiny=monai_networks.TINY["resunet3d"]
    ),
    "unetr": Network(monai_networks.unetr, is_3d=True, tiny=monai_networks.TINY["unetr"]),
    "swinunetr": Network(
        monai_networks.swinunetr, is_3d=True, tiny=monai_networks.TINY["swinunetr"]
    ),
    "transbts": Network(transbts.TransBTS, is_3d=True, tiny=transbts.TINY),
    "unetrpp": Network(unetrpp.UNETRPP, is_3d=True, tiny=unetrpp.TINY),
    "nnformer": Network(nnformer.NnFormer, is_3d=True, tiny=nnformer.TINY),
}
"""Every network by its name on the command line."""


def find_network(name: str) -> Network:
    """Look a network up.

    Raises:
        InputError: If there is none of that name; the message lists those that there are.
    """
    if name not in MODELS:
        raise InputError(f"--model {name}: unknown; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[name]


def build_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:  # noqa: ANN401
    """Build a network with random weights.

    Args:
        name: A key of `MODELS`.
        num_classes: Planes of its output.
        options: Passed on to the network; each network has its own.

    Raises:
        InputError: If there is no such network, or it cannot be built with these options.
    """
    network = find_network(name)
    try:
        return network.build(num_classes=num_classes, **options)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        given = ", ".join(f"{option}={value}" for option, value in options.items())
        reason = " ".join(str(error).split())
        raise InputError(f"--model {name} cannot be built with {given}: {reason}") from error


def read_options(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Turn options of a network, as typed, into values of the types that it asks for.

    Args:
        name: A key of `MODELS`.
        options: As `--model-option` takes them: `size=tiny` for a preset, numbers, and lists of numbers
            with commas between.

    Raises:
        InputError: If the network has no such option, or the value is none of its type.
    """
    network = find_network(name)
    typed: dict[str, Any] = {}
    for option, value in options.items():
        if (option, value) == ("size", "tiny") and network.tiny:
            typed = {**network.tiny, **typed}
            continue
        parameter = network.options.get(option)
        if parameter is None:
            raise InputError(
                f"--model-option {option}={value}: {name} has no such option; {_known(network)}"
            )
        typed[option] = _read(f"{option}={value}", value, parameter.annotation)
    return typed


def _known(network: Network) -> str:
    names = sorted(network.options)
    names += ["size=tiny"] if network.tiny else []
    return f"it has {', '.join(names)}" if names else "it has none"


def _read(text: str, value: str, annotation: Any) -> Any:  # noqa: ANN401 - whatever a network asks for
    is_list = str(annotation).startswith("tuple")
    try:
        return TypeAdapter(annotation).validate_python(value.split(",") if is_list else value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"--model-option {text}: {reason}") from error
