"""Clients that train in several processes of this machine, with the same bits as in one."""

import multiprocessing
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cache_schema.errors import InputError
from training.federated.client import LocalClients, Workplace
from training.federated.work import Order, Reply
from training.runlog import Observer, Silent

Parcel = TypeVar("Parcel", Order, Reply)
"""Goes through a pipe without its tensors, which are in files."""

FAREWELL_S: Final = 15.0
"""How long processes may take to end by themselves, which they do after a step at the latest."""


class ClientPool:
    """A process for each device of a list; whoever is free trains the next client.

    Networks go to and fro in files of a temporary folder, so the memory of the server does not grow
    with clients or processes. Some clients are trained ahead of the one whose turn it is, at most
    one for each process besides those in training: more would only fill the disk.

    A process is `multiprocessing`'s own with a pipe, not one of an executor, because that does not
    tell which process died, at which client and on which device, and leaves its processes behind
    when it is killed. It is spawned: CUDA does not survive a fork.
    """

    def __init__(self, workplace: Workplace, devices: Sequence[torch.device]) -> None:
        """Start nothing yet; a process starts when there is work for it.

        Args:
            workplace: What every process needs.
            devices: One for each process; of one kind, or the bits would depend on who is free.
        """
        self._workplace = workplace
        self._devices = devices
        self._workers: list[_Worker] = []
        self._temporary = TemporaryDirectory(prefix="clients-")
        self._folder = Path(self._temporary.name)

    def __enter__(self) -> "ClientPool":
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, whatever they are doing, and remove the files."""
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + FAREWELL_S
        for worker in self._workers:
            worker.end(max(0.0, deadline - time.monotonic()))
        self._temporary.cleanup()

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round."""
        return self._workplace.count_steps(clients)

    def train(self, clients: Sequence[int], order: Order, observer: Observer) -> Iterator[Reply]:
        """Let clients train side by side, and give their replies in the order of `clients`.

        Raises:
            InputError: If a shard or a client's own memory is damaged, a process died, or the
                temporary folder cannot be written.
        """
        _write(_paths(self._folder, "order"), order)
        task = replace(order, model={}, extras={})
        waiting = deque(clients)
        done: dict[int, Reply] = {}
        for number, client in enumerate(clients, start=2 * len(self._devices)):
            self._hand_out(waiting, task, num_kept=len(clients) - number)
            while client not in done:
                done |= {reply.client: reply for reply in self._listen(task, observer)}
                self._hand_out(waiting, task, num_kept=len(clients) - number)
            yield self._complete(done.pop(client))

    def _complete(self, reply: Reply) -> Reply:
        """Add the tensors of a reply, whose files are not needed any more."""
        paths = _paths(self._folder, f"reply-{reply.client}")
        complete = _read(paths, reply)
        for path in paths:
            path.unlink()
        return complete

    def _hand_out(self, waiting: deque[int], task: Order, *, num_kept: int) -> None:
        while len(waiting) > max(0, num_kept) and (worker := self._free_worker()) is not None:
            worker.begin(waiting.popleft(), task)

    def _free_worker(self) -> "_Worker | None":
        for worker in self._workers:
            if worker.client is None:
                return worker
        if len(self._workers) == len(self._devices):
            return None
        device = self._devices[len(self._workers)]
        self._workers.append(_start_worker(self._workplace, device, self._folder))
        return self._workers[-1]

    def _listen(self, task: Order, observer: Observer) -> Iterator[Reply]:
        """Wait until anybody has something to say; steps are told at once."""
        busy = {worker.pipe: worker for worker in self._workers if worker.client is not None}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            client, message = worker.client, worker.receive()
            if isinstance(message, Reply):
                worker.client = None
                yield message
            elif client is not None:
                observer.step(round_number=task.round, client=client, loss=message)


@dataclass
class _Worker:
    """A process as the server sees it.

    Attributes:
        device: Where it trains.
        process: It leads a process group, to which its loader's processes belong.
        pipe: To and from it.
        client: Whom it trains, or None if it is free.
    """

    device: torch.device
    process: BaseProcess
    pipe: Connection
    client: int | None = None

    def begin(self, client: int, task: Order) -> None:
        """Let it train a client.

        Raises:
            InputError: If it died since its last client.
        """
        self.client = client
        try:
            self.pipe.send((client, task))
        except ConnectionError as error:
            raise self._death() from error

    def receive(self) -> Reply | float:
        """Take a reply, or the loss of a step.

        Raises:
            InputError: If it died or cannot go on.
        """
        try:
            message: Reply | float | InputError = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death() from error
        if isinstance(message, InputError):
            raise message
        return message

    def end(self, patience_s: float) -> None:
        """Wait until the process has ended by itself, or kill it and all that it has started."""
        wait([self.process.sentinel], patience_s)
        self.process.kill()
        if self.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def _death(self) -> InputError:
        self.process.join(FAREWELL_S)
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return InputError(
            f"the process that trained client {self.client} on {self.device} died ({how}), perhaps for "
            "lack of memory; go on with --resume, and with fewer devices if it happens again"
        )


def _start_worker(workplace: Workplace, device: torch.device, folder: Path) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(theirs, workplace, device, folder, torch.get_num_threads())
    )
    # Ctrl-C is for the server, which ends its processes; those inherit that it is blocked. The tracker
    # is started before, because its start unblocks it.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return _Worker(device, process, ours)


def _work(
    pipe: Connection, workplace: Workplace, device: torch.device, folder: Path, num_threads: int
) -> None:
    """Train clients until the server closes the pipe, or is gone."""
    os.setpgid(0, 0)
    torch.set_num_threads(num_threads)  # decides in which order sums are taken
    try:
        _serve(pipe, workplace, device, folder)
    except (EOFError, ConnectionError):
        server = multiprocessing.parent_process()
        if server is None or not server.is_alive():
            shutil.rmtree(folder, ignore_errors=True)


def _serve(pipe: Connection, workplace: Workplace, device: torch.device, folder: Path) -> None:
    try:
        with _in_one_line(device):
            clients = workplace.open(device)
            while True:
                client, task = pipe.recv()
                pipe.send(_train(clients, client, task, _Teller(pipe), folder))
    except InputError as error:
        pipe.send(error)


@contextmanager
def _in_one_line(device: torch.device) -> Iterator[None]:
    """Let an error of a process be told by the server; by itself a process would print a traceback."""
    try:
        yield
    except (InputError, EOFError, ConnectionError):  # the last two: the server has closed the pipe
        raise
    except Exception as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise InputError(
            f"the process that trained on {device} failed ({type(error).__name__}: {reason}); go on with "
            "--resume, and with fewer devices or a smaller --batch-size if it lacks memory"
        ) from error


def _train(
    clients: LocalClients, client: int, task: Order, observer: Observer, folder: Path
) -> Reply:
    """Train one client, and leave its tensors in the folder."""
    order = _read(_paths(folder, "order"), task)
    (reply,) = clients.train([client], order, observer)
    _write(_paths(folder, f"reply-{client}"), reply)
    return replace(reply, model={}, extras={})


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.model.safetensors", folder / f"{name}.extras.safetensors"


def _write(paths: tuple[Path, Path], parcel: Order | Reply) -> None:
    """Put the tensors of a parcel into files."""
    try:
        for path, state in zip(paths, (parcel.model, parcel.extras), strict=True):
            path.unlink(missing_ok=True)  # another process may still see the one before
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{paths[0].parent} cannot be written ({error}); networks go to and fro there: make room, "
            "or set TMPDIR to a folder that has it, and go on with --resume"
        ) from error


def _read(paths: tuple[Path, Path], parcel: Parcel) -> Parcel:
    """Add the tensors of a parcel from its files."""
    model, extras = map(load_file, paths)
    return replace(parcel, model=model, extras=extras)


class _Teller(Silent):
    """Tells the server every step."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def step(self, *, round_number: int, client: int, loss: float) -> None:  # noqa: ARG002
        """Pass the loss on; the server knows the rest."""
        self._pipe.send(loss)
