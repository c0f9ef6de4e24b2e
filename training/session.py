"""What every kind of training starts from: the network, its data, and a run's folder, new or resumed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from cache_schema.errors import InputError
from cache_schema.files import refuse_links, remove_partials, reporting
from cache_schema.locks import holding
from cache_schema.manifest import Manifest, read_manifest
from cache_schema.preprocessing import PreprocessingRecord, record_preprocessing
from cache_schema.targets import require_writable_folder
from training.attempt import clear_attempt, holds_run
from training.checkpoint import add_digests
from training.config import TrainConfig, is_of_earlier_release, option_of, read_config, write_config
from training.data.batches import TrainingSet
from training.device import (
    choose_device,
    compile_where_it_pays,
    device_kind,
    keep_freed_memory,
)
from training.event_file import TENSORBOARD_FOLDER
from training.models.initial import initial_model
from training.models.smallest_batch import smallest_batch
from training.provenance import (
    read_provenance,
    require_same_cache,
    write_preprocessing,
    write_provenance,
    write_remote_provenance,
)
from training.runlog import LOG_NAME
from training.training_set import open_training_set, require_company

LOCK_NAME: Final = "run.lock"
"""Of a run: whoever trains in its folder holds the lock of this file, which stays there."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A run that is ready to train.

    Attributes:
        model: Initial weights, on the CPU.
        devices: Where to train.
        dataset: Training examples of all clients.
        members: Clients that have any.
        least_batch: Examples that the network needs at a time.
    """

    model: nn.Module
    devices: Sequence[torch.device]
    dataset: TrainingSet
    members: Sequence[int]
    least_batch: int

    @property
    def device(self) -> torch.device:
        """The first device; for most kinds of training there is no other."""
        return self.devices[0]


@contextmanager
def open_session(
    config: TrainConfig,
    cache: Path,
    run: Path,
    *,
    resume: bool,
    devices: Sequence[torch.device] = (),
) -> Iterator[Session]:
    """Build what training needs, and make the run's folder last, when nothing can be wrong any more.

    The run is held until the block ends: nobody else trains in its folder.

    Args:
        config: Of the run; saved with it.
        cache: A finished cache; its test set is not touched.
        run: A new folder, or with `resume` one that a run with the same settings has left.
        resume: Go on with a run.
        devices: Where to train; by default on the one that `config` names.

    Raises:
        InputError: If the cache or an option cannot be used, or `run` is not as it should be.
    """
    devices = devices or (choose_device(config.device),)
    manifest = read_manifest(cache)
    _refuse_links(run)
    if resume:
        _require_same_settings(config, run)
        require_same_cache(run, cache, manifest)
        with holding_run(run):
            _tidy(run)
            session = _build(config, cache, manifest, devices)
            write_preprocessing(run, record_preprocessing(manifest))  # earlier releases lack it
            yield session
        return
    require_no_run(run)
    session = _build(config, cache, manifest, devices)
    with _new_run(run):
        write_provenance(run, manifest, device=",".join(map(str, devices)))
        write_preprocessing(run, record_preprocessing(manifest))
        write_config(run, config)
        yield session


def _build(
    config: TrainConfig, cache: Path, manifest: Manifest, devices: Sequence[torch.device]
) -> Session:
    """Build the network and open its examples.

    Raises:
        InputError: If the cache or an option cannot be used.
    """
    keep_freed_memory(devices[0])
    model = initial_model(config)
    least_batch = smallest_batch(model, config)
    compile_where_it_pays(model, config.compile, devices[0])
    dataset = open_training_set(config, cache, manifest)
    members = [k for k in range(manifest.options.clients) if dataset.count((k,))]
    if not members:
        raise InputError(f"{cache} has no training slices with --slices {config.slices}")
    require_company(config, dataset, members, least_batch)
    return Session(model, devices, dataset, members, least_batch)


@contextmanager
def holding_run(run: Path) -> Iterator[None]:
    """Hold a run's folder through a block, so that no two processes ever train in it.

    Raises:
        InputError: If another process does.
    """
    refusal = f"another `train` writes to {run}; wait for it, or stop it"
    with holding(run / LOCK_NAME, refusal) as is_guarded:
        if not is_guarded:
            _log.warning(
                "%s is on a file system without locks: let no other `train` write to it", run
            )
        yield


@contextmanager
def _new_run(run: Path, *, logs_at_once: bool = False) -> Iterator[None]:
    """Make the folder of a new run, empty of an attempt before it, and hold it through a block."""
    with reporting(run, option="--run"):
        run.mkdir(parents=True, exist_ok=True)
    with holding_run(run):
        require_no_run(run, logs_at_once=logs_at_once)  # another may have been quicker
        clear_attempt(run)
        yield


@contextmanager
def open_remote_run(
    config: TrainConfig,
    run: Path,
    *,
    name: str,
    sites: Mapping[int, str],
    preprocessing: PreprocessingRecord,
    resume: bool,
) -> Iterator[None]:
    """Make the folder of a run whose clients train at their own places, or find the one to go on with.

    The run is held until the block ends: nobody else trains in its folder.

    Args:
        config: Of the run; saved with it.
        run: A new folder, or with `resume` one that a run with the same settings has left.
        name: What the clients know the run by.
        sites: Digest of each client's manifest.
        preprocessing: How all clients have made their slices.
        resume: Go on with a run.

    Raises:
        InputError: If `run` is not as it should be, or its clients have other data now.
    """
    _refuse_links(run)
    if resume:
        _require_same_settings(config, run)
        saved = read_provenance(run).get("sites")
        given = {str(client): digest for client, digest in sites.items()}
        if saved != given:
            raise InputError(
                f"{run} was begun by other clients or with other data: {saved}, not {given}"
            )
        with holding_run(run):
            _tidy(run)
            write_preprocessing(run, preprocessing)
            yield
        return
    require_no_run(run, logs_at_once=True)
    with _new_run(run, logs_at_once=True):
        write_remote_provenance(run, name=name, sites=sites)
        write_preprocessing(run, preprocessing)
        write_config(run, config)
        yield


def _tidy(run: Path) -> None:
    """Remove what a kill left in a run's folder, and bring what an earlier release wrote up to date.

    Raises:
        InputError: If a file is damaged, or cannot be written.
    """
    remove_partials(run)
    if is_of_earlier_release(run):
        add_digests(run)
        write_config(run, read_config(run))
        _log.warning("%s was begun by an earlier release: its files have digests from now on", run)


def require_no_run(run: Path, *, logs_at_once: bool = False) -> None:
    """Make sure that a run's folder can be made, and that nothing is overwritten.

    Args:
        run: Folder that a new run is to have.
        logs_at_once: See `training.attempt.holds_run`.

    Raises:
        InputError: If the folder cannot be written, or holds a run that goes on, or of which any step was
            finished.
    """
    require_writable_folder(run, "--run")
    if holds_run(run, logs_at_once=logs_at_once):
        raise InputError(
            f"{run} holds a run already; go on with it with --resume, give another folder with --run, "
            "or remove it"
        )


def _refuse_links(run: Path) -> None:
    """Make sure that nothing outside a run is written or removed through a link inside it."""
    for name in (LOG_NAME, TENSORBOARD_FOLDER):
        refuse_links(run / name)


def _require_same_settings(config: TrainConfig, run: Path) -> None:
    saved = read_config(run).model_dump()
    given = config.model_dump()
    if device_kind(given["device"]) == device_kind(saved["device"]):
        given["device"] = saved["device"]  # which of a kind, and how many, decides nothing
    changed = [
        f"{option_of(name, saved['strategy'])} {given[name]} instead of {value}"
        for name, value in saved.items()
        if given[name] != value
    ]
    if changed:
        raise InputError(f"{run} was begun with other settings ({', '.join(changed)})")
