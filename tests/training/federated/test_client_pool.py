import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from tests.training.conftest import TinyNet
from training.data import SliceDataset
from training.federated.client import Workplace
from training.federated.client_memory import ClientMemory
from training.federated.client_pool import ClientPool
from training.federated.engine import run_federation
from training.federated.strategies.fedavg import FedAvg
from training.federated.work import Order, Reply
from training.models.registry import MODELS, Network
from training.provenance import read_provenance
from training.runlog import read_rounds

CPU = torch.device("cpu")


class TinyWorkplace(Workplace):
    """Knows the tests' network in other processes too."""

    def open(self, device):
        MODELS["tiny"] = Network(TinyNet)
        return super().open(device)


class Adders:
    """Clients that add their number to the weights; the first one takes its time."""

    def train(self, clients, order, observer):
        (client,) = clients
        time.sleep(2.0 if client == 40 else 0.0)
        observer.step(round_number=order.round, client=client, loss=float(client))
        model = {name: tensor + client for name, tensor in order.model.items()}
        extras = {"threads": torch.tensor([torch.get_num_threads(), order.remembered[client]])}
        yield Reply(client, 1, 1, 0.5, {}, 0.0, False, None, model, extras)


class AddersWorkplace(Workplace):
    """A place where nothing is trained."""

    def open(self, device):
        return Adders()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where networks go to and fro."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    place = "training.federated.client_pool.TemporaryDirectory"
    monkeypatch.setattr(place, partial(TemporaryDirectory, dir=folder))
    return folder


@pytest.fixture
def two(tiny_config, folder, monkeypatch):
    """Settings for two processes that know the tests' network."""
    monkeypatch.setattr("training.federated.engine.Workplace", TinyWorkplace)
    return tiny_config.model_copy(update={"device": "cpu,cpu"})


def running(group):
    """Find the processes of a group, but for those that are dead and wait to be collected."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(ProcessLookupError, FileNotFoundError):
            stats.append(path.read_text().rpartition(")")[2].split())
    return [stat for stat in stats if int(stat[2]) == group and stat[0] != "Z"]


def survivors(groups):
    """Find the groups that outlive a kill: the system takes a moment to end what it has killed."""
    end = time.monotonic() + 10
    while any(running(group) for group in groups) and time.monotonic() < end:
        time.sleep(0.01)
    return [group for group in groups if running(group)]


def outcome(run):
    """All of a run that must not depend on where it was trained."""
    rounds = [
        replace(r, seconds=0.0, clients=tuple(replace(c, seconds=0.0) for c in r.clients))
        for r in read_rounds(run)
    ]
    return rounds, *((run / f"{name}.safetensors").read_bytes() for name in ("model", "resume"))


@pytest.mark.parametrize(("strategy", "byzantine"), [("fedavg", "noise:1"), ("cyclic", None)])
def test_two_processes_give_the_bits_of_one(
    strategy, byzantine, small_cache, tiny_config, two, tmp_path, observer, folder
):
    runs = []
    for config in (tiny_config, two):
        runs.append(tmp_path / config.device)
        config = config.model_copy(update={"strategy": strategy, "byzantine": byzantine})  # noqa: PLW2901
        run_federation(config, small_cache, runs[-1], observer)
    assert outcome(runs[0]) == outcome(runs[1])
    assert read_provenance(runs[1])["device"] == "cpu,cpu"
    half = len(observer.steps) // 2
    assert sorted(observer.steps[:half]) == sorted(observer.steps[half:])
    assert not list(folder.iterdir())


def test_a_run_goes_on_with_another_number_of_processes(
    small_cache, tiny_config, two, tmp_path, observer
):
    update = {"strategy": "scaffold", "rounds": 3}  # clients remember what another process wrote
    one, run = tiny_config.model_copy(update=update), tmp_path / "run"
    run_federation(one, small_cache, tmp_path / "undisturbed", observer)

    def stop(record):
        raise KeyboardInterrupt

    observer.round_done = stop
    with pytest.raises(KeyboardInterrupt):
        run_federation(one, small_cache, run, observer)
    del observer.round_done
    run_federation(two.model_copy(update=update), small_cache, run, observer, resume=True)
    assert outcome(run) == outcome(tmp_path / "undisturbed")


def test_a_process_that_dies_ends_the_run_in_one_line_and_leaves_nobody_behind(
    small_cache, tiny_config, two, tmp_path, observer, folder
):
    one = tiny_config.model_copy(update={"loader_workers": 1, "rounds": 3})
    run_federation(one, small_cache, tmp_path / "undisturbed", observer)
    run, groups = tmp_path / "run", []
    honest = observer.step

    def step(**told):
        honest(**told)
        # Whoever has already done its part of round 2 is missed in round 3.
        if told["round_number"] == 2 and not groups:
            groups.extend(process.pid for process in multiprocessing.active_children())
            os.kill(groups[0], signal.SIGKILL)

    observer.step = step
    with pytest.raises(InputError, match=r"client \d on cpu died \(SIGKILL\).*--resume") as caught:
        run_federation(one.model_copy(update={"device": two.device}), small_cache, run, observer)
    assert "\n" not in str(caught.value)
    assert survivors(groups) == []
    assert len(groups) == 2
    assert not list(folder.iterdir())
    del observer.step
    run_federation(one, small_cache, run, observer, resume=True)
    assert outcome(run) == outcome(tmp_path / "undisturbed")


def test_a_damaged_shard_is_named_as_in_one_process(
    cache_copy, tiny_config, two, tmp_path, observer
):
    shard = cache_copy / read_manifest(cache_copy).client_shards(1)[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 :: 64] = bytes(len(content[len(content) // 2 :: 64]))
    shard.write_bytes(content)
    lines = []
    for config in (tiny_config, two):
        with pytest.raises(InputError) as caught:
            run_federation(config, cache_copy, tmp_path / config.device, observer)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert str(shard) in lines[0]


def test_replies_come_in_the_order_of_clients_and_few_are_made_ahead(
    small_cache, tiny_config, tmp_path, observer, folder
):
    parts = (SliceDataset(small_cache), tiny_config, FedAvg(), ClientMemory(tmp_path))
    clients = [40, *range(8, 0, -1)]
    remembered = {client: 10 * client for client in clients}
    with ClientPool(AddersWorkplace(*parts), [CPU, CPU]) as pool:
        for number in (1, 2):
            order = Order(number, {"w": torch.arange(3.0) * number}, {}, remembered)
            replies = pool.train(clients, order, observer)
            first = next(replies)
            assert len(list(folder.glob("*/reply-*.model.*"))) <= 3  # of 2 * 2, and not the first
            for client, reply in zip(clients, (first, *replies), strict=True):
                assert reply.client == client
                assert reply.model["w"].tolist() == [client, client + number, client + 2 * number]
                assert reply.extras["threads"].tolist() == [torch.get_num_threads(), 10 * client]
        pids = [process.pid for process in multiprocessing.active_children()]
    assert len(pids) == 2
    assert not any(running(pid) for pid in pids)
    assert not list(folder.iterdir())
    assert sorted(observer.steps) == sorted((n, c, float(c)) for n in (1, 2) for c in clients)


def test_settings_of_another_kind_of_device_are_refused(
    small_cache, tiny_run, tiny_config, observer, monkeypatch
):
    monkeypatch.setattr("training.session.device_kind", lambda names: names)
    config = tiny_config.model_copy(update={"device": "cpu:0"})
    with pytest.raises(InputError, match="--device cpu:0 instead of cpu"):
        run_federation(config, small_cache, tiny_run, observer, resume=True)


class BareWorkplace(Workplace):
    """A place where nobody can train."""

    def open(self, device):
        raise MemoryError("not enough\nframe #0: of the allocator")


def test_whatever_fails_in_a_process_is_told_by_the_server_in_one_line(
    small_cache, tiny_config, tmp_path, observer, folder, capfd
):
    parts = (SliceDataset(small_cache), tiny_config, FedAvg(), ClientMemory(tmp_path))
    order = Order(1, {"w": torch.zeros(1)}, {}, {})
    with ClientPool(BareWorkplace(*parts), [CPU, CPU]) as pool, pytest.raises(InputError) as caught:
        list(pool.train([0], order, observer))
    assert str(caught.value).startswith(
        "the process that trained on cpu failed (MemoryError: not enough); go on with --resume"
    )
    assert "Traceback" not in capfd.readouterr().err
