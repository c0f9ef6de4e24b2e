"""The round loop of a federation inside one process."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from cache_schema.vocabulary import REGIONS
from training.checkpoint import save_weights
from training.config import CONFIG_NAME, TrainConfig, write_config
from training.data import SliceDataset
from training.device import choose_device
from training.federated.aggregate import State, Update, find_fault
from training.federated.client import LocalClients, Trained
from training.federated.strategies.registry import make_strategy
from training.models.initial import initial_model
from training.provenance import write_provenance
from training.runlog import ClientRecord, Observer, RoundRecord, open_log


def run_federation(config: TrainConfig, cache: Path, run: Path, observer: Observer) -> None:
    """Train a model over all clients of a cache and save it after every round.

    In each round every client that has slices trains from the global model, in client order, and
    the strategy takes the updates as they come: only one of them is in memory. A client whose loss
    or update is not finite is refused and logged, and the round goes on without it.

    Args:
        config: Of the run; saved with it.
        cache: A finished cache; its test set is not touched.
        run: A new folder for settings, log and weights.
        observer: Told about progress.

    Raises:
        InputError: If the cache or an option cannot be used, `run` holds a run already, the loss is
            not finite, or a round has no sound update.
    """
    manifest = read_manifest(cache)
    strategy = make_strategy(config.strategy)
    device = choose_device(config.device)
    model = initial_model(config)
    dataset = SliceDataset(cache, slices=config.slices, manifest=manifest)
    members = [k for k in range(manifest.options.clients) if dataset.rows_of(k)]
    if not members:
        raise InputError(f"{cache} has no training slices with --slices {config.slices}")
    _create(run)
    write_config(run, config)
    write_provenance(run, manifest, device=str(device))
    state: State = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clients = LocalClients(dataset, model.to(device), config)
    steps = sum(math.ceil(len(dataset.rows_of(k)) / config.batch_size) for k in members)
    observer.started(num_rounds=config.rounds, num_steps=steps * config.local_epochs)
    with open_log(run) as log:
        log.record("started", cache=str(cache), clients=members)
        for round_number in range(1, config.rounds + 1):
            start = time.perf_counter()
            records: list[ClientRecord] = []
            results = (clients.train(k, state, round_number, observer) for k in members)
            state = strategy.aggregate(state, _sound_updates(results, state, records))
            save_weights(run, state, round_number=round_number)
            record = _summary(round_number, records, time.perf_counter() - start)
            log.round_done(record)
            observer.round_done(record)
        log.record("finished")


def _create(run: Path) -> None:
    if (run / CONFIG_NAME).exists():
        raise InputError(f"{run} holds a run already; give another folder with --run, or remove it")
    run.mkdir(parents=True, exist_ok=True)


def _sound_updates(
    results: Iterable[Trained], model: State, records: list[ClientRecord]
) -> Iterator[Update]:
    """Note how every client fared and let the updates through that are fit for aggregation."""
    for trained in results:
        fault = trained.result.fault or find_fault(trained.update, model)
        records.append(_client_record(trained, fault))
        if fault is None:
            yield trained.update
    if all(record.refused for record in records):
        raise InputError(
            f"no sound update in this round ({records[0].refused}); the learning rate may be too "
            "high; the model of the round before is still on disk"
        )


def _client_record(trained: Trained, fault: str | None) -> ClientRecord:
    return ClientRecord(
        client=trained.update.client,
        num_examples=trained.update.num_examples,
        num_steps=trained.result.num_steps,
        loss=trained.result.loss,
        dice=trained.result.dice,
        seconds=trained.seconds,
        refused=fault,
    )


def _summary(round_number: int, records: Sequence[ClientRecord], seconds: float) -> RoundRecord:
    sound = [record for record in records if record.refused is None]
    weights = [record.num_examples for record in sound]
    losses = [record.loss for record in sound if record.loss is not None]
    return RoundRecord(
        round=round_number,
        loss=float(np.average(losses, weights=weights)),
        dice={
            region: float(np.average([record.dice[region] for record in sound], weights=weights))
            for region in REGIONS
        },
        seconds=seconds,
        clients=tuple(records),
    )
