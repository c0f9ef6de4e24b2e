"""The settings of a training run: frozen, checked at the border, saved with every run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from cache_schema.documents import read_object
from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from training.config_history import VERSION_KEY, open_settings, seal_settings
from training.models.registry import find_network

CONFIG_NAME: Final = "config.json"

DAMAGED: Final = (
    "bring the file back, or train again: the command without --resume takes the folder if no step of "
    "the run was finished, another one with --run always"
)
"""What to do about settings that cannot be used."""

CENTRAL: Final = "central"
"""Stands where a federated run names its strategy."""


DEFAULTS_3D: Final[dict[str, Any]] = {"crop": 128, "batch_size": 2, "weights": "none"}
"""Of networks of three dimensions: the crop that is usual for them, and a batch that fits a GPU of 24 GB."""


class TrainConfig(BaseModel):
    """Everything that decides the result of a run, besides the cache.

    The defaults are the paper's (section 2.6), where it states them.

    Attributes:
        model: A key of `training.models.registry.MODELS`.
        model_options: Options of the network, as typed.
        position: Position embedding: none, 2d, 3d or 2d+3d.
        position_levels: At the last level of the encoder or at all.
        fuse_en2: Cross-modal attention at en2 too.
        weights: `imagenet`, `none`, or the path of a ResNet18 state dict.
        target: What the three output planes are: labels NEC, ED, ET or regions ET, TC, WT.
        strategy: A key of `training.federated.strategies.registry.STRATEGIES`, or `central`: one
            training set of all clients' slices.
        strategy_options: Hyper-parameters of the strategy, as typed.
        fraction: Share of the clients that is asked to train in a round.
        dropout_rate: Probability that a client that was asked fails to report.
        byzantine: Kind and number of clients that lie, and how many times as large as an honest change
            their lies are, such as `sign-flip:2:4`; kinds are those of `training.federated.hostile`.
        exchange: Type of numbers that travel between server and clients.
        rounds: Communication rounds, counted from 1; with `central` epochs.
        local_epochs: Passes over a client's slices in each round.
        local_steps: Optimiser steps of every client in each round, instead of passes.
        epoch_schedule: Passes in every round: as `local_epochs` says, or that many at first and
            fewer as the loss falls.
        batch_size: Slices, or patches of volumes.
        learning_rate: Of Adam, at the start.
        lr_schedule: Cosine decay over the whole run, a cut when Dice stays on a plateau, or none.
        lr_patience: Rounds without a better Dice after which `plateau` cuts the learning rate.
        crop: Side of the square training crop, in voxels; a multiple of 32.
        depth: Slices of a patch, for a network of three dimensions; None takes as many as `crop`.
        rotation_deg: Largest rotation of augmentation, to both sides.
        noise_std: Standard deviation of augmentation noise, in z-scores.
        modality_dropout: Probability that a training slice loses a modality, so that the network
            learns to do without; 0 in the paper.
        slices: Train on all slices, or on those that show tumour.
        tumour_share: Share of a pass that is drawn from the slices that show tumour; None takes every
            slice once. Of patches the share that is put around tumour; None puts half of them there.
        seed: Of everything random.
        loader_workers: Processes that read shards; 0 reads in the training process.
        device: `auto` takes a GPU if there is one.
        precision: Of the network's arithmetic; `auto` is bfloat16 on a GPU that has it, else float32.
            Weights, optimiser and loss are float32 always.
        compile: Let torch.compile fuse the network; `auto` does on a GPU.
        checkpoint_steps: In `train central`, optimiser steps between two checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: str = "unetmm"
    model_options: dict[str, str] = {}
    position: Literal["none", "2d", "3d", "2d+3d"] = "2d"
    position_levels: Literal["last", "all"] = "last"
    fuse_en2: bool = False
    weights: str = "imagenet"
    target: Literal["labels", "regions"] = "labels"
    strategy: str = "fedavg"
    strategy_options: dict[str, str] = {}
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    dropout_rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    byzantine: (
        Annotated[str, Field(pattern=r"^((sign-flip|noise):[1-9]\d*(:\d+(\.\d+)?)?|nan:[1-9]\d*)$")]
        | None
    ) = None
    exchange: Literal["fp32", "bf16"] = "fp32"
    rounds: Annotated[int, Ge(1)] = 30
    local_epochs: Annotated[int, Ge(1)] = 3
    local_steps: Annotated[int, Ge(1)] | None = None
    epoch_schedule: Literal["constant", "adaptive"] = "constant"
    batch_size: Annotated[int, Ge(1)] = 8
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    lr_schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    lr_patience: Annotated[int, Ge(1)] = 20
    crop: Annotated[int, Ge(32), MultipleOf(32)] = 224
    depth: Annotated[int, Ge(16), MultipleOf(16)] | None = None
    rotation_deg: Annotated[float, Ge(0), Lt(180)] = 15.0
    noise_std: Annotated[float, Ge(0)] = 0.01
    modality_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    slices: Literal["all", "tumour"] = "all"
    tumour_share: Annotated[float, Ge(0), Le(1)] | None = None
    seed: Annotated[int, Ge(0)] = 0
    loader_workers: Annotated[int, Ge(0)] = 1
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_steps: Annotated[int, Ge(1)] = 500

    @field_validator("epoch_schedule")
    @classmethod
    def _adapt_passes_only(cls, value: str, info: Any) -> str:  # noqa: ANN401 - beartype fails on pydantic's
        if value == "adaptive" and info.data.get("local_steps") is not None:
            raise PydanticCustomError(
                "no_passes",
                "adapts passes; with --local-steps there are none, leave one of them out",
            )
        return value


def make_config(**settings: Any) -> TrainConfig:  # noqa: ANN401
    """Check settings that came from a command line.

    Args:
        settings: Those of `DEFAULTS_3D` may be None: what is usual for the network then.

    Raises:
        InputError: Naming every option that is wrong, and how.
    """
    is_3d = find_network(settings.get("model", "unetmm")).is_3d
    for name, usual in DEFAULTS_3D.items():
        if settings.get(name, "") is None:
            settings[name] = usual if is_3d else TrainConfig.model_fields[name].default
    try:
        return TrainConfig(**settings)
    except ValidationError as error:
        raise InputError(describe(error, settings.get("strategy"))) from error


def named_values(name_of_option: str, options: Sequence[str]) -> dict[str, str]:
    """Take the values of an option such as `--strategy-option` apart, each written as `NAME=VALUE`.

    Raises:
        InputError: If one is written otherwise.
    """
    pairs = [option.partition("=") for option in options]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(f"{name_of_option} {name}{equals}{value}: write it as NAME=VALUE")
    return {name: value for name, _, value in pairs}


def write_config(run: Path, config: TrainConfig) -> None:
    """Save the settings in a run's folder.

    Raises:
        InputError: If they cannot be written.
    """
    document = seal_settings(config.model_dump(mode="json"))
    write_atomically(run / CONFIG_NAME, json.dumps(document, indent=1) + "\n")


def read_config(run: Path) -> TrainConfig:
    """Read the settings that a run was made with; those of an earlier release as it understood them.

    Raises:
        InputError: If the folder is no run, or its settings are damaged, incomplete or of a later release.
    """
    path = run / CONFIG_NAME
    try:
        settings = open_settings(_read_document(run), TrainConfig.model_fields)
        return TrainConfig.model_validate_json(json.dumps(settings))
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {describe(error)}; {DAMAGED}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; {DAMAGED}") from error


def is_of_earlier_release(run: Path) -> bool:
    """Tell whether a run's settings are of a version before this one, whose files had no digests.

    Raises:
        InputError: If they cannot be read.
    """
    return VERSION_KEY not in _read_document(run)


def _read_document(run: Path) -> dict[str, Any]:
    path = run / CONFIG_NAME
    if not path.exists():
        raise InputError(
            f"{run} is not a run: it has no {CONFIG_NAME}; give the folder that `train fed` or "
            "`train central` wrote"
        )
    return read_object(path, DAMAGED)


def describe(error: ValidationError, strategy: str | None = None) -> str:
    """Name every setting that is wrong by its option, and how, in one line."""
    return "; ".join(
        f"{option_of('-'.join(map(str, problem['loc'])), strategy)}: {problem['msg']}"
        for problem in error.errors()
    )


def option_of(setting: str, strategy: str | None) -> str:
    """Name the option by which a setting is given; rounds are the epochs of `train central`."""
    name = "epochs" if (setting, strategy) == ("rounds", CENTRAL) else setting
    return f"--{name.replace('_', '-')}"
