"""The round loop of a federation inside one process."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cache_schema.errors import InputError
from cache_schema.vocabulary import REGIONS
from training.checkpoint import WEIGHTS_NAME, load_weights, save_weights
from training.config import TrainConfig
from training.federated.aggregate import State, Update, find_fault
from training.federated.client import LocalClients, Trained
from training.federated.strategies.registry import make_strategy
from training.runlog import ClientRecord, Observer, RoundRecord, open_log
from training.session import open_session


def run_federation(
    config: TrainConfig, cache: Path, run: Path, observer: Observer, *, resume: bool = False
) -> None:
    """Train a model over all clients of a cache and save it after every round.

    In each round every client that has slices trains from the global model, in client order, and
    the strategy takes the updates as they come: only one of them is in memory. A client whose loss
    or update is not finite is refused and logged, and the round goes on without it. What a client
    does follows from the global model, the round and the seed, so a run that was killed goes on from
    its last round with the same bits.

    Args:
        config: Of the run; saved with it.
        cache: A finished cache; its test set is not touched.
        run: A new folder for settings, log and weights; with `resume` that of the run to go on with.
        observer: Told about progress.
        resume: Go on with a run.

    Raises:
        InputError: If the cache or an option cannot be used, `run` is not as it should be, weights
            cannot be written, or a round has no sound update.
    """
    strategy = make_strategy(config.strategy)
    session = open_session(config, cache, run, resume=resume)
    state: State = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    last_round = 0
    if resume and (run / WEIGHTS_NAME).exists():
        state, last_round = load_weights(run)
    clients = LocalClients(session.dataset, session.model.to(session.device), config)
    observer.started(num_rounds=config.rounds, num_steps=clients.count_steps(session.members))
    with open_log(run) as log:
        log.record(
            "resumed" if resume else "started",
            cache=str(cache),
            clients=session.members,
            round=last_round + 1,
        )
        for round_number in range(last_round + 1, config.rounds + 1):
            start = time.perf_counter()
            records: list[ClientRecord] = []
            results = clients.train(session.members, state, round_number, observer)
            state = strategy.aggregate(state, _sound_updates(results, state, records))
            record = _summary(round_number, records, time.perf_counter() - start)
            log.round_done(record)
            save_weights(run, state, round_number=round_number)
            observer.round_done(record)
        log.record("finished")


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
