from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache_schema.errors import InputError
from training.data.batches import Pass, Passes, make_loader, read_batches
from training.data.slices import SliceDataset


def test_a_pass_visits_every_slice_of_its_clients_once(small_cache):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4)
    for clients in ((1,), (0, 1)):
        passes.plan([Pass(clients, 3)])
        batches = list(passes)
        assert len(batches) == len(passes) == passes.num_batches(clients)
        assert sorted(chain(*batches)) == dataset.rows_of(clients).tolist()
        assert list(chain(*batches)) != sorted(chain(*batches))
        assert {len(batch) for batch in batches[:-1]} == {4}
        assert len(batches[-1]) in {2, 3, 4, 5}


def test_passes_follow_each_other_and_each_has_an_order_of_its_own(small_cache):
    passes = Passes(SliceDataset(small_cache), batch_size=4)
    plan = [Pass((0,), 5), Pass((1,), 5), Pass((0,), 6)]
    alone = []
    for each in plan:
        passes.plan([each])
        alone.append(list(passes))
    passes.plan(plan)
    assert list(passes) == [*alone[0], *alone[1], *alone[2]]
    assert alone[0] != alone[2]
    passes.plan(plan, skip=len(alone[0]) + 2)
    assert list(passes) == [*alone[1][2:], *alone[2]]
    assert len(passes) == len(alone[1]) - 2 + len(alone[2])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_slices_shows_tumour(small_cache, share):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4, tumour_share=share)
    passes.plan([Pass((0, 1), 1)])
    drawn = list(chain(*passes))
    assert len(drawn) == len(dataset)
    assert sum(dataset.shows_tumour[drawn]) == round(share * len(dataset))
    # Of what is drawn more often than it is there, every slice comes about as often.
    times = Counter(drawn)
    for shows in (True, False):
        counts = [times[row] for row in np.flatnonzero(dataset.shows_tumour == shows).tolist()]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(4, (4, 4, 5)), (5, (5, 5, 3)), (12, (13,)), (13, (13,)), (1, (1,) * 13), (20, (13,))],
)
def test_a_single_slice_that_is_left_over_joins_the_batch_before(
    batch_size, sizes, small_cache, monkeypatch
):
    dataset = SliceDataset(small_cache)
    monkeypatch.setattr(dataset, "rows_of", lambda _: np.arange(13))
    monkeypatch.setattr(dataset, "count", lambda _: 13)
    passes = Passes(dataset, batch_size=batch_size)
    passes.plan([Pass((0,), 1)])
    batches = list(passes)
    assert tuple(map(len, batches)) == sizes
    assert len(passes) == len(sizes)
    assert sorted(chain(*batches)) == list(range(13))


@pytest.mark.parametrize(
    ("least", "batch_size", "sizes"),
    [(1, 4, (4, 4, 4, 1)), (1, 12, (12, 1)), (1, 5, (5, 5, 3)), (2, 12, (13,)), (2, 6, (6, 7))],
)
def test_an_example_that_is_left_over_joins_only_where_the_network_needs_company(
    least, batch_size, sizes, small_cache, monkeypatch
):
    dataset = SliceDataset(small_cache)
    monkeypatch.setattr(dataset, "rows_of", lambda _: np.arange(13))
    monkeypatch.setattr(dataset, "count", lambda _: 13)
    passes = Passes(dataset, batch_size=batch_size, least_batch=least)
    passes.plan([Pass((0,), 1)])
    assert tuple(map(len, passes)) == sizes
    assert len(passes) == passes.num_batches((0,)) == len(sizes)


def test_loader_processes_read_what_the_training_process_reads(small_cache):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4)
    seen = []
    for num_workers in (0, 2):
        loader = make_loader(dataset, passes, num_workers=num_workers, pin_memory=False)
        for client in (0, 1):
            passes.plan([Pass((client,), 1)])
            seen.append([image.clone() for image, _ in loader])
    for here, there in zip(seen[:2], seen[2:], strict=True):
        assert len(here) == len(there)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


class Failing(DataLoader):
    """A loader whose processes fail in some way."""

    def __init__(self, error, num_workers):
        super().__init__([], num_workers=num_workers)
        self.error = error

    def __iter__(self):
        raise self.error


def test_a_process_that_dies_is_one_line_and_an_error_of_this_process_stays_what_it_is():
    death = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    with pytest.raises(InputError, match=r"exited unexpectedly\): .*--loader-workers 0"):
        next(read_batches(Failing(death, num_workers=1)))
    with pytest.raises(RuntimeError, match="exited unexpectedly") as raised:
        next(read_batches(Failing(death, num_workers=0)))
    assert raised.value is death


def test_an_error_in_a_process_is_one_line_without_its_traceback(small_cache):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4)
    dataset._index += [0, 1000, 0]  # another shard than there is
    passes.plan([Pass((0,), 1)])
    loader = make_loader(dataset, passes, num_workers=1, pin_memory=False)
    with pytest.raises(InputError) as raised:
        list(read_batches(loader))
    assert "(IndexError: list index out of range)" in str(raised.value)
    assert "Traceback" not in str(raised.value)
