"""What every kind of training starts from: the network, its data, and a run's folder, new or resumed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, read_manifest
from training.config import CONFIG_NAME, TrainConfig, read_config, write_config
from training.data import SliceDataset
from training.device import choose_device, compile_where_it_pays, keep_freed_memory
from training.models.initial import initial_model
from training.provenance import require_same_cache, write_provenance


@dataclass(frozen=True)
class Session:
    """A run that is ready to train.

    Attributes:
        model: Initial weights, on the CPU.
        device: Where to train.
        dataset: Training slices of all clients.
        members: Clients that have any.
    """

    model: nn.Module
    device: torch.device
    dataset: SliceDataset
    members: Sequence[int]


def open_session(config: TrainConfig, cache: Path, run: Path, *, resume: bool) -> Session:
    """Build what training needs, and make the run's folder last, when nothing can be wrong any more.

    Args:
        config: Of the run; saved with it.
        cache: A finished cache; its test set is not touched.
        run: A new folder, or with `resume` one that a run with the same settings has left.
        resume: Go on with a run.

    Raises:
        InputError: If the cache or an option cannot be used, or `run` is not as it should be.
    """
    manifest = read_manifest(cache)
    if resume:
        _require_same_run(config, cache, run, manifest)
    elif (run / CONFIG_NAME).exists():
        raise InputError(
            f"{run} holds a run already; go on with it with --resume, give another folder with --run, "
            "or remove it"
        )
    device = choose_device(config.device)
    keep_freed_memory(device)
    model = initial_model(config)
    compile_where_it_pays(model, config.compile, device)
    dataset = SliceDataset(cache, slices=config.slices, manifest=manifest)
    members = [k for k in range(manifest.options.clients) if dataset.count_slices((k,))]
    if not members:
        raise InputError(f"{cache} has no training slices with --slices {config.slices}")
    if not resume:
        run.mkdir(parents=True, exist_ok=True)
        write_provenance(run, manifest, device=str(device))
        write_config(run, config)
    return Session(model, device, dataset, members)


def _require_same_run(config: TrainConfig, cache: Path, run: Path, manifest: Manifest) -> None:
    saved = read_config(run).model_dump()
    given = config.model_dump()
    changed = [
        f"--{name.replace('_', '-')} {given[name]} instead of {value}"
        for name, value in saved.items()
        if given[name] != value
    ]
    if changed:
        raise InputError(f"{run} was begun with other settings ({', '.join(changed)})")
    require_same_cache(run, cache, manifest)
