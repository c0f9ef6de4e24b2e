"""The order in which a run takes training examples of any kind, and the processes that read them."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.processes import as_example, collate, explain, shorten_sockets
from training.data.slices import Slice
from training.data.volumes import Patch
from training.seeds import derive_seed

Example = Slice | Patch


@runtime_checkable
class TrainingSet(Protocol):
    """What a run trains on: examples of some clients, numbered from 0."""

    @property
    def shows_tumour(self) -> Bool[np.ndarray, " example"]:
        """For every example whether it holds a label."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, key: Any) -> Example:  # noqa: ANN401 - of `keys`
        """Read one example."""

    def rows_of(self, clients: Sequence[int]) -> Int[np.ndarray, " example"]:
        """Return the numbers of some clients' examples."""

    def count(self, clients: Sequence[int]) -> int:
        """Count some clients' examples."""

    def keys(self, rows: Int[np.ndarray, " row"], seed: int) -> list[Any]:
        """Say what to ask for, to get examples in a step of a pass that has this seed."""


class Pass(NamedTuple):
    """One pass over the examples of some clients together, in an order that a seed decides."""

    clients: tuple[int, ...]
    seed: int


class Passes(Sampler[list[Any]]):
    """The batches of one pass after another.

    One sampler, one loader and its processes serve a whole run: `plan` says what comes next, and
    since the loader reads ahead over the end of a pass, nobody waits for the next client's data.
    """

    def __init__(
        self,
        dataset: TrainingSet,
        batch_size: int,
        *,
        tumour_share: float | None = None,
        least_batch: int = 2,
    ) -> None:
        """Start without a plan; make one before iterating.

        Args:
            dataset: Whose keys to give.
            batch_size: Examples; the last batch of a pass may be smaller.
            tumour_share: Draw this share of a pass from the examples that show tumour, again and
                again if they are fewer, and the rest from the others. By default each once.
            least_batch: Fewer examples than this that are left over join the batch before: a single
                one may give BatchNorm nothing to compute with. 1 for a network that needs no company.
        """
        self._dataset = dataset
        self._batch_size = batch_size
        self._tumour_share = tumour_share
        self._least_batch = least_batch
        self._plan: Sequence[Pass] = ()
        self._skip = 0

    def plan(self, passes: Sequence[Pass], *, skip: int = 0) -> None:
        """Decide on the passes of the next iteration, without the first `skip` batches of all."""
        self._plan, self._skip = passes, skip

    def num_batches(self, clients: Sequence[int]) -> int:
        """Count the batches of a pass."""
        return len(self._starts(self._dataset.count(clients)))

    def __len__(self) -> int:
        """Return the number of batches of all planned passes."""
        return sum(self.num_batches(each.clients) for each in self._plan) - self._skip

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the keys of each batch."""
        return islice(self._all_batches(), self._skip, None)

    def _all_batches(self) -> Iterator[list[Any]]:
        for clients, seed in self._plan:
            order = self._order(clients, torch.Generator().manual_seed(seed))
            starts = self._starts(len(order))
            for start, stop in zip(starts, (*starts[1:], len(order)), strict=True):
                yield self._dataset.keys(order[start:stop], derive_seed(seed, start))

    def _starts(self, num_examples: int) -> range:
        num_left = num_examples % self._batch_size
        joins = num_examples > self._batch_size and num_left < self._least_batch
        return range(0, num_examples - num_left * joins, self._batch_size)

    def _order(
        self, clients: Sequence[int], generator: torch.Generator
    ) -> Int[np.ndarray, " slice"]:
        rows = self._dataset.rows_of(clients)
        if self._tumour_share is None:
            return _shuffled(rows, len(rows), generator)
        shows = self._dataset.shows_tumour[rows]
        wanted = round(self._tumour_share * len(rows)) if shows.any() else 0
        wanted = len(rows) if shows.all() else wanted
        tumour = _shuffled(rows[shows], wanted, generator)
        others = _shuffled(rows[~shows], len(rows) - wanted, generator)
        return _shuffled(np.concatenate([tumour, others]), len(rows), generator)


class Shifts(Passes):
    """The batches of several sequences of passes, each cut after its last step."""

    _shifts: Sequence[tuple[Sequence[Pass], int]] = ()
    _skipped: int = 0

    def plan_shifts(self, shifts: Sequence[tuple[Sequence[Pass], int]], *, skip: int = 0) -> None:
        """Decide on the passes and the number of steps of each sequence of the next iteration.

        Args:
            shifts: Passes, at least as many as the steps take.
            skip: Steps of the first sequence that are done already.
        """
        self._shifts, self._skipped = shifts, skip

    def __len__(self) -> int:
        """Return the number of batches of all sequences."""
        return sum(num_steps for _, num_steps in self._shifts) - self._skipped

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the keys of each batch."""
        skip = self._skipped
        for passes, num_steps in self._shifts:
            self.plan(passes, skip=skip)
            yield from islice(super().__iter__(), num_steps - skip)
            skip = 0


def _shuffled(
    rows: Int[np.ndarray, " slice"], count: int, generator: torch.Generator
) -> Int[np.ndarray, " count"]:
    """Draw without replacement, starting over with a full set whenever it is used up."""
    num_sets = math.ceil(count / len(rows)) if count else 0
    orders = [torch.randperm(len(rows), generator=generator).numpy() for _ in range(num_sets)]
    order: np.ndarray = np.concatenate([np.empty(0, np.int64), *orders])[:count]
    return np.asarray(rows[order])


def make_loader(
    dataset: TrainingSet, batches: Passes, *, num_workers: int, pin_memory: bool
) -> DataLoader[Example]:
    """Load batches in `num_workers` processes that live as long as the loader.

    Workers are started by a fork server, not forked: a fork would carry HDF5 handles and the locks
    of other threads along.
    """
    if num_workers > 0:
        shorten_sockets()
    return DataLoader(
        cast("Dataset[Example]", dataset),  # torch asks for no more than `__getitem__` of it
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="forkserver" if num_workers > 0 else None,
        collate_fn=collate,
        pin_memory=pin_memory,
        # The loader draws seeds for its workers; from the global generator they would shift dropout.
        generator=torch.Generator(),
    )


def read_batches(loader: DataLoader[Example]) -> Iterator[Example]:
    """Go through a loader once.

    Raises:
        InputError: If a shard is damaged, wherever it was read, or a process that reads cannot start or
            go on; in one line.
    """
    try:
        yield from map(as_example, loader)
    except Exception as error:
        if loader.num_workers == 0:
            raise
        raise explain(error) from error
