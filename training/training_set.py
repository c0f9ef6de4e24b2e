"""What a run trains on: slices, or patches of volumes for a network of three dimensions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest
from training.config import CENTRAL, TrainConfig
from training.data.batches import Shifts, TrainingSet
from training.data.slices import SliceDataset
from training.data.volumes import PatchDataset, PatchSampling
from training.models.initial import patch_of
from training.models.smallest_batch import describe_need

PATCHES_ON_TUMOUR: Final = 0.5
"""Share of the patches that are put around tumour, where `--tumour-share` says nothing."""


def open_training_set(
    config: TrainConfig,
    cache: Path,
    manifest: Manifest,
    *,
    clients: Sequence[int] | None = None,
    known_as: int | None = None,
) -> TrainingSet:
    """Open the training examples of some or all clients of a cache.

    Args:
        config: Of the run; names the network, which wants slices or patches.
        cache: A finished cache.
        manifest: Of that cache.
        clients: Whose examples; all clients by default.
        known_as: Number that these clients go by here, if not by their own.

    Raises:
        InputError: If the cache cannot be used, or a setting is none of this kind of examples.
    """
    size = patch_of(config)
    if size is None:
        return SliceDataset(
            cache, clients=clients, slices=config.slices, manifest=manifest, known_as=known_as
        )
    if config.slices != "all":
        raise InputError(
            f"--slices {config.slices}: {config.model} trains on patches; --tumour-share says how many "
            "of them hold tumour"
        )
    share = PATCHES_ON_TUMOUR if config.tumour_share is None else config.tumour_share
    sampling = PatchSampling(size, config.rotation_deg, share)
    return PatchDataset(cache, sampling, clients=clients, manifest=manifest, known_as=known_as)


def share_of_passes(config: TrainConfig) -> float | None:
    """Say which share of a pass is drawn from slices with tumour; patches see to that themselves."""
    return config.tumour_share if patch_of(config) is None else None


def plan_batches(config: TrainConfig, dataset: TrainingSet, least_batch: int) -> Shifts:
    """Make the sampler of a run's batches.

    Args:
        config: Of the run.
        dataset: Its training examples.
        least_batch: Examples that its network needs at a time.
    """
    share = share_of_passes(config)
    return Shifts(dataset, config.batch_size, tumour_share=share, least_batch=least_batch)


def require_company(
    config: TrainConfig, dataset: TrainingSet, members: Sequence[int], least_batch: int
) -> None:
    """Make sure that whoever trains has as many examples as the network needs at a time.

    Args:
        config: Of the run.
        dataset: Its training examples.
        members: Clients that have any.
        least_batch: Examples that the network needs at a time.

    Raises:
        InputError: If somebody has fewer.
    """
    groups = [tuple(members)] if config.strategy == CENTRAL else [(client,) for client in members]
    lonely = [group for group in groups if dataset.count(group) < least_batch]
    if lonely:
        clients = ", ".join(str(client) for group in lonely for client in group)
        raise InputError(
            f"client {clients} has a single training example with --slices {config.slices}: "
            f"{describe_need(config)}; give a larger --crop, other --slices, or prepare the cache with a "
            "larger --min-cases"
        )
