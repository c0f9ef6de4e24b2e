"""What a run trains on: slices, or patches of volumes for a network of three dimensions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest
from training.config import TrainConfig
from training.data.batches import TrainingSet
from training.data.slices import SliceDataset
from training.data.volumes import PatchDataset, PatchSampling
from training.models.initial import patch_of

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
