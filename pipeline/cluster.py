"""The Dask cluster that a preparation runs on: one of this machine, or one that runs already."""

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Final

import dask
from distributed import Client, LocalCluster
from distributed.comm.core import CommClosedError
from distributed.utils import silence_logging_cmgr

from cache_schema.errors import InputError
from cache_schema.machine import usable_cores
from pipeline.case import AXES_VERSION, PREPROCESSING_VERSION

WORKER_ENVIRONMENT: Final = {
    "MALLOC_MMAP_THRESHOLD_": 2**25,
    "MALLOC_TRIM_THRESHOLD_": 2**29,
    "MALLOC_ARENA_MAX": 1,  # the arena of a thread could not hold on to a volume
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
}
"""Dask's own lets malloc return every volume to the system at once, which then zeroes pages for the next
one: half of a worker's time. A worker holds one case either way."""

SETTINGS: Final = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
}
"""Dask looks at every thread 100 times a second and at every event loop 50 times, on the same cores that
work: some 3 % of the time of two workers."""

TIMEOUT_S: Final = 30
"""For what a cluster that runs already should do at once."""

SILENT: Final = logging.CRITICAL + 1
"""What matters comes back as exceptions. On Ctrl-C the scheduler calls it critical, with a traceback,
that workers still send word to a client who has just gone."""


@contextmanager
def connect(
    num_workers: int | None, scheduler: str | None, folder: Path | None = None
) -> Iterator[Client]:
    """Start worker processes on this machine, or join a cluster, for as long as the block lasts.

    Args:
        num_workers: Processes on this machine, one thread each; all cores by default. They listen
            on 127.0.0.1 only.
        scheduler: Address of a cluster that runs already; then no process is started.
        folder: What its workers have to see at the same place.

    Raises:
        InputError: If the scheduler cannot be reached or is lost, or its workers are not fit.
    """
    with _started(num_workers) if scheduler is None else _joined(scheduler, folder) as client:
        yield client


@contextmanager
def _started(num_workers: int | None) -> Iterator[Client]:
    with _environment_kept():
        with _interrupts_for_main_alone(), dask.config.set(SETTINGS):
            cluster = LocalCluster(
                n_workers=num_workers or usable_cores(),
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=SILENT,
            )
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Put this process's environment back: Dask sets that of workers here, for them to inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _joined(scheduler: str, folder: Path | None) -> Iterator[Client]:
    with silence_logging_cmgr(SILENT):
        try:
            client = Client(scheduler, timeout=TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--scheduler {scheduler} cannot be reached ({error}); start one with `dask scheduler`"
            ) from error
        with client:
            _check_workers(client, scheduler, folder)
            try:
                yield client
            except (CancelledError, CommClosedError) as error:
                raise InputError(
                    f"--scheduler {scheduler} was lost; when it runs again, the same command goes on "
                    "from what is finished"
                ) from error


def _check_workers(client: Client, scheduler: str, folder: Path | None) -> None:
    """Refuse a cluster that would fail at every case, before it is blamed on the cases."""
    try:
        client.wait_for_workers(1, timeout=TIMEOUT_S)
    except TimeoutError as error:
        raise InputError(
            f"--scheduler {scheduler} has no workers; start some with `dask worker {scheduler}`"
        ) from error
    try:
        found = client.run(_describe_worker, folder)
        found_release, _ = client.run_on_scheduler(_describe_worker, None)
    except (
        Exception
    ) as error:  # Dask raises just that when a process cannot import what it is to run
        raise InputError(
            f"--scheduler {scheduler}: it or its workers cannot run this package ({error}); install it "
            "there and start them anew"
        ) from error
    for worker, (release, sees_folder) in found.items():
        if {release, found_release} != {_release()}:
            raise InputError(
                f"--scheduler {scheduler}: {worker} has another release; install this one"
            )
        if not sees_folder:
            raise InputError(
                f"--scheduler {scheduler}: {worker} does not see {folder}; its workers have to share "
                "a file system with this machine"
            )


def _describe_worker(folder: Path | None) -> tuple[tuple[int, ...], bool]:
    """Tell which preprocessing a process has, and whether it sees a folder."""
    return _release(), folder is None or folder.is_dir()


def _release() -> tuple[int, ...]:
    """Return what decides the voxels that this process would make."""
    return PREPROCESSING_VERSION, *AXES_VERSION.values()


@contextmanager
def _interrupts_for_main_alone() -> Iterator[None]:
    """Keep Ctrl-C from the threads and processes that are started meanwhile.

    A terminal sends it to all of them at once; workers would print tracebacks, while the main process
    ends them in good order.
    """
    resource_tracker.ensure_running()  # it would unblock the signal in the thread that starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
