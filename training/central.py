"""Training on everybody's slices together: what a federation is compared with."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from cache_schema.errors import InputError
from training.checkpoint import (
    fill_moments,
    fitting,
    load_resume,
    moments_of,
    save_resume,
    save_weights,
)
from training.config import TrainConfig
from training.data.batches import Example, Pass, make_loader, read_batches
from training.device import fork_random
from training.fit import FitResult, Stint, fit, make_optimizer
from training.runlog import EVERYBODY, Board, ClientRecord, Observer, RoundRecord, RunLog, open_log
from training.seeds import derive_seed
from training.session import Session, open_session
from training.training_set import plan_batches

TOLD_PER_EPOCH: Final = 20
"""Lines of the log that tell how far an epoch is, for who watches the run."""


def run_central(
    config: TrainConfig,
    cache: Path,
    run: Path,
    observer: Observer,
    *,
    resume: bool = False,
    boards: Sequence[Board] = (),
) -> None:
    """Train a model on the slices of all clients of a cache as one training set.

    One optimiser serves the whole run. After every epoch, and every `checkpoint_steps` steps, the
    network, the optimiser's moments and the position are saved in one step: a run that was killed goes
    on from there with the same bits.

    Args:
        config: Of the run, its `rounds` being epochs, and `local_steps` the steps of an epoch that is no
            pass; saved with it.
        cache: A finished cache; its test set is not touched.
        run: A new folder for settings, log and weights; with `resume` that of the run to go on with.
        observer: Told about progress; an epoch is a round.
        resume: Go on with a run.
        boards: Where to show the scalars of every epoch, besides TensorBoard.

    Raises:
        InputError: If the cache or an option cannot be used, `run` is not as it should be, a
            checkpoint cannot be written, or the loss is not finite.
    """
    with open_session(config, cache, run, resume=resume) as session:
        _carry_on(session, config, cache, run, observer, resume=resume, boards=boards)


def _carry_on(
    session: Session,
    config: TrainConfig,
    cache: Path,
    run: Path,
    observer: Observer,
    *,
    resume: bool,
    boards: Sequence[Board],
) -> None:
    """Go through the epochs that are left, from what the run has saved.

    Raises:
        InputError: If a checkpoint cannot be read or written, or the loss is not finite.
    """
    model = session.model.to(session.device)
    optimizer = make_optimizer(model, config)
    first_epoch, done, seconds = 1, FitResult(), 0.0
    if resume and (saved := load_resume(run)) is not None:
        groups, position = saved
        with fitting(run):
            model.load_state_dict(groups["model"])
            fill_moments(optimizer, groups["optimizer"])
            first_epoch, done = index(position["epoch"]), _result(position["done"])
            seconds = position["seconds"]
        if not done.num_steps:
            save_weights(run, groups["model"], round_number=first_epoch - 1)
    shifts = plan_batches(config, session.dataset, session.least_batch)
    everybody = tuple(session.members)
    per_pass = shifts.num_batches(everybody)
    num_steps = config.local_steps or per_pass
    epochs = range(first_epoch, config.rounds + 1)
    shifts.plan_shifts(
        [(_passes(everybody, config, epoch, per_pass), num_steps) for epoch in epochs],
        skip=done.num_steps,
    )
    loader = make_loader(
        session.dataset,
        shifts,
        num_workers=config.loader_workers,
        pin_memory=session.device.type == "cuda",
    )
    observer.started(num_rounds=config.rounds, num_steps=len(shifts))
    with open_log(run, boards) as log, fork_random(session.device):
        log.record(
            "resumed" if resume else "started",
            cache=str(cache),
            epoch=first_epoch,
            rounds=config.rounds,
        )
        log.tell_missing(first_epoch)
        steps = _Steps(log, observer, num_steps, done.num_steps)
        trainer = _Trainer(config, run, model, optimizer, read_batches(loader), steps)
        for epoch in epochs:
            start = time.perf_counter() - seconds
            done = trainer.finish_epoch(epoch, done, start)
            num_examples = session.dataset.count(everybody)
            record = _record(epoch, done, num_examples, time.perf_counter() - start)
            done, seconds = FitResult(), 0.0
            log.round_done(record)
            save_weights(run, model.state_dict(), round_number=epoch)
            trainer.save(epoch + 1, done, seconds)
            observer.round_done(record)
        log.record("finished")


@dataclass(frozen=True)
class _Trainer:
    """What stays the same from epoch to epoch."""

    config: TrainConfig
    run: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[Example]
    steps: "_Steps"

    def finish_epoch(self, epoch: int, done: FitResult, start: float) -> FitResult:
        """Train the rest of an epoch that began at some time, saving a checkpoint now and then."""
        while done.num_steps < self.steps.per_epoch:
            done += fit(
                self.model,
                self.optimizer,
                self.batches,
                self.config,
                stint=self._stint(epoch, done.num_steps),
                on_step=partial(self.steps.tell, epoch),
            )
            if done.fault is not None:
                raise InputError(
                    f"epoch {epoch}: {done.fault}; the learning rate may be too high; the last "
                    f"checkpoint in {self.run} is whole"
                )
            if done.num_steps < self.steps.per_epoch:
                self.save(epoch, done, time.perf_counter() - start)
        return done

    def save(self, epoch: int, done: FitResult, seconds: float) -> None:
        """Save everything that going on needs: also what is done of an epoch, and what that took."""
        position = {"epoch": epoch, "done": asdict(done), "seconds": seconds}
        groups = {"model": self.model.state_dict(), "optimizer": moments_of(self.optimizer)}
        save_resume(self.run, groups, position)

    def _stint(self, epoch: int, start: int) -> Stint:
        return Stint(
            stream=(epoch,),
            start=start,
            stop=min(start + self.config.checkpoint_steps, self.steps.per_epoch),
            progress=(epoch - 1) / self.config.rounds,
            progress_per_step=1.0 / (self.config.rounds * self.steps.per_epoch),
        )


class _Steps:
    """Counts the steps of an epoch for observer and log."""

    def __init__(self, log: RunLog, observer: Observer, per_epoch: int, done: int) -> None:
        """Begin in an epoch of which some steps are done."""
        self._log = log
        self._observer = observer
        self.per_epoch = per_epoch
        self._done = done

    def tell(self, epoch: int, loss: float) -> None:
        """Take one more step."""
        self._observer.step(round_number=epoch, client=EVERYBODY, loss=loss)
        self._done = self._done % self.per_epoch + 1
        if self._done % math.ceil(self.per_epoch / TOLD_PER_EPOCH) == 0:
            self._log.record("steps", epoch=epoch, done=self._done, of=self.per_epoch, loss=loss)


def _passes(clients: tuple[int, ...], config: TrainConfig, epoch: int, per_pass: int) -> list[Pass]:
    """List the passes of an epoch: one, or as many as its steps take."""
    num_passes = math.ceil((config.local_steps or per_pass) / per_pass)
    streams = [(epoch,), *((epoch, number) for number in range(1, num_passes))]
    return [Pass(clients, derive_seed(config.seed, *stream)) for stream in streams]


def _record(epoch: int, done: FitResult, num_examples: int, seconds: float) -> RoundRecord:
    assert done.loss is not None  # noqa: S101
    everybody = ClientRecord(EVERYBODY, num_examples, done.num_steps, done.loss, done.dice, seconds)
    return RoundRecord(epoch, done.loss, done.dice, seconds, (everybody,))


def _result(document: dict[str, Any]) -> FitResult:
    overlap = tuple(map(tuple, document["overlap"]))
    return FitResult(**{**document, "overlap": overlap})
