import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from cache_schema.errors import InputError
from cache_schema.manifest import digest, read_manifest
from cache_schema.vocabulary import REGIONS
from tests.training.conftest import TinyNet
from training.checkpoint import load_weights
from training.config import read_config
from training.data import SliceDataset
from training.federated.client import LocalClients, Workplace
from training.federated.client_memory import ClientMemory
from training.federated.engine import Federation, run_federation
from training.federated.exchange import narrow_change, widen
from training.federated.strategies.fedavg import FedAvg
from training.federated.work import Lost, Order, Reply
from training.models.initial import initial_model
from training.runlog import read_rounds


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_round_is_the_weighted_mean_of_what_each_client_trains_alone(
    small_cache, tiny_config, tmp_path, observer
):
    config = tiny_config.model_copy(update={"rounds": 1})
    run_federation(config, small_cache, tmp_path / "run", observer)
    federated, _ = load_weights(tmp_path / "run")
    start = initial_model(config)
    state = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    alone = []
    for client in (1, 0):  # not in the engine's order: a client must not depend on who went before
        memory = ClientMemory(tmp_path / str(client))
        workplace = Workplace(SliceDataset(small_cache), config, FedAvg(), memory)
        clients = LocalClients(workplace, initial_model(config))
        alone += clients.train([client], Order(1, state), observer)
    sizes = [reply.num_examples for reply in alone]
    assert sizes[0] != sizes[1]
    name = "layers.0.weight"
    mean = sum(n * r.model[name].double() for n, r in zip(sizes, alone, strict=True)) / sum(sizes)
    torch.testing.assert_close(federated[name], mean.float(), rtol=0, atol=1e-7)
    assert not torch.allclose(federated[name], (alone[0].model[name] + alone[1].model[name]) / 2)


def test_the_same_settings_give_the_same_bits_however_shards_are_read(
    small_cache, tiny_config, tiny_run, tmp_path, observer
):
    config = tiny_config.model_copy(update={"loader_workers": 2})
    run_federation(config, small_cache, tmp_path / "run", observer)
    assert same(load_weights(tmp_path / "run")[0], load_weights(tiny_run)[0])


def test_another_seed_gives_another_model(small_cache, tiny_config, tiny_run, tmp_path, observer):
    config = tiny_config.model_copy(update={"seed": 1})
    run_federation(config, small_cache, tmp_path / "run", observer)
    assert not same(load_weights(tmp_path / "run")[0], load_weights(tiny_run)[0])


def test_global_random_state_does_not_matter(
    small_cache, tiny_config, tiny_run, tmp_path, observer
):
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    assert same(load_weights(tmp_path / "run")[0], load_weights(tiny_run)[0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_keeps_settings_log_and_weights(small_cache, tiny_config, tiny_run):
    assert read_config(tiny_run) == tiny_config
    state, last = load_weights(tiny_run)
    assert last == 2
    assert state["layers.1.num_batches_tracked"].dtype == torch.int64
    events = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    each = ["asked", "reply", "reply", "round"]
    assert [event["event"] for event in events] == ["started", *each, *each, "finished"]
    assert (events[0]["rounds"], events[1]["clients"], events[1]["absent"]) == (2, [0, 1], [])
    assert [(e["client"], e["refused"]) for e in events if e["event"] == "reply"] == 2 * [
        (0, None),
        (1, None),
    ]
    provenance = json.loads((tiny_run / "provenance.json").read_text())
    assert provenance["manifest"] == digest(read_manifest(small_cache))
    assert any((tiny_run / "tensorboard").iterdir())


def test_the_observer_is_told_every_step_and_round(small_cache, tiny_config, tmp_path, observer):
    run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    num_rounds, num_steps = observer.plan
    assert num_rounds == 2
    assert len(observer.steps) == num_steps
    assert [record.round for record in observer.rounds] == [1, 2]
    assert read_rounds(tmp_path / "run") == tuple(observer.rounds)
    clients = observer.rounds[0].clients
    weights = [client.num_examples for client in clients]
    mean = sum(n * c.loss for n, c in zip(weights, clients, strict=True)) / sum(weights)
    assert observer.rounds[0].loss == pytest.approx(mean)


def spoil(monkeypatch, bad_clients):
    """Let some clients send a NaN."""
    honest = LocalClients.train

    def train(self, *args):
        for reply in honest(self, *args):
            if reply.client in bad_clients:
                reply.model["layers.0.bias"][0] = float("nan")
            yield reply

    monkeypatch.setattr(LocalClients, "train", train)


def test_an_update_that_is_not_finite_is_refused_and_the_round_goes_on(
    small_cache, tiny_config, tmp_path, observer, monkeypatch
):
    spoil(monkeypatch, {0})
    run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    state, last = load_weights(tmp_path / "run")
    assert last == 2
    assert all(torch.isfinite(t).all() for t in state.values())
    refused = [c.refused for c in read_rounds(tmp_path / "run")[0].clients]
    assert refused == ["layers.0.bias has values that are not finite", None]
    assert observer.rounds[0].loss == observer.rounds[0].clients[1].loss


def test_a_round_without_a_sound_update_ends_the_run_in_one_line(
    small_cache, tiny_config, tmp_path, observer, monkeypatch
):
    spoil(monkeypatch, {0, 1})
    with pytest.raises(InputError, match="no sound update") as caught:
        run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    assert "\n" not in str(caught.value)


def lose(monkeypatch, lost):
    """Let some clients not report in a round."""
    honest = LocalClients.train

    def train(self, clients, order, observer):
        silent = [client for client in clients if (order.round, client) in lost]
        yield from (Lost(client, "no answer") for client in silent)
        yield from honest(self, [c for c in clients if c not in silent], order, observer)

    monkeypatch.setattr(LocalClients, "train", train)


def test_a_client_that_does_not_report_is_on_record_and_the_round_goes_on(
    small_cache, tiny_config, tmp_path, observer, monkeypatch
):
    lose(monkeypatch, {(2, 1)})
    run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    rounds = read_rounds(tmp_path / "run")
    assert [record.absent for record in rounds] == [(), (1,)]
    assert [[c.client for c in record.clients] for record in rounds] == [[0, 1], [0]]
    (line,) = (x for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if "lost" in x)
    event = json.loads(line)
    assert (event["round"], event["client"], event["reason"]) == (2, 1, "no answer")


def test_a_round_in_which_nobody_reports_ends_the_run_in_one_line(
    small_cache, tiny_config, tmp_path, observer, monkeypatch
):
    lose(monkeypatch, {(2, 0), (2, 1)})
    with pytest.raises(InputError, match=r"no client reported in round 2.*--resume"):
        run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    assert load_weights(tmp_path / "run")[1] == 1


class Nudgers:
    """Clients that add to every parameter less than its last bit in bfloat16."""

    def count_steps(self, clients):
        return 0

    def train(self, clients, order, observer):
        received = widen(order.model)
        for client in clients:
            trained = {
                name: tensor + 2.0**-12 if tensor.is_floating_point() else tensor
                for name, tensor in received.items()
            }
            sent = narrow_change(trained, received, "bf16")
            yield Reply(client, 1, 1, 0.5, dict.fromkeys(REGIONS, 0.5), 0.0, False, None, sent, {})


def test_changes_below_the_last_bit_of_bfloat16_add_up_over_the_rounds(
    tiny_config, tmp_path, observer
):
    config = tiny_config.model_copy(update={"exchange": "bf16", "rounds": 8})
    model = TinyNet(3)
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
    (tmp_path / "run").mkdir()
    federation = Federation(config, tmp_path / "run", (0, 1), Nudgers(), FedAvg())
    federation.carry_on(model, observer, resume=False, boards=())
    weight = load_weights(tmp_path / "run")[0]["layers.0.weight"]
    torch.testing.assert_close(weight, torch.full_like(weight, 1.0 + 8 * 2.0**-12))


def test_a_strategy_that_needs_more_clients_than_any_round_has_is_refused_before_training(
    small_cache, tiny_config, tmp_path, observer
):
    config = tiny_config.model_copy(update={"strategy": "krum"})
    with pytest.raises(InputError, match=r"^--strategy krum: 2 of 2 clients.*5 are needed"):
        run_federation(config, small_cache, tmp_path / "run", observer)
    assert observer.plan is None


def test_a_finished_run_is_not_overwritten(small_cache, tiny_config, tiny_run, observer):
    with pytest.raises(InputError, match="holds a run already"):
        run_federation(tiny_config, small_cache, tiny_run, observer)


@pytest.mark.parametrize(("name", "value"), [("model", "vnet"), ("strategy", "fedsgd")])
def test_an_unknown_name_is_refused_before_anything_is_written(
    name, value, small_cache, tiny_config, tmp_path, observer
):
    config = tiny_config.model_copy(update={name: value})
    with pytest.raises(InputError, match=f"--{name} {value}: unknown; choose one of"):
        run_federation(config, small_cache, tmp_path / "run", observer)
    assert not (tmp_path / "run").exists()


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


@pytest.mark.parametrize("moment", [1, 4, 7, 9])
def test_a_run_that_was_killed_in_a_step_ends_with_the_same_bits(
    moment, small_cache, tiny_config, tiny_run, tmp_path, observer
):
    run, honest = tmp_path / "run", observer.step

    def step(**told):
        honest(**told)
        if len(observer.steps) == moment:
            raise KilledError

    observer.step = step
    with pytest.raises(KilledError):
        run_federation(tiny_config, small_cache, run, observer)
    del observer.step
    run_federation(tiny_config, small_cache, run, observer, resume=True)
    assert same(load_weights(run)[0], load_weights(tiny_run)[0])
    mine, theirs = ([(r.round, r.loss) for r in read_rounds(each)] for each in (run, tiny_run))
    assert mine == theirs


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_a_run_that_was_killed_while_it_saved_ends_with_the_same_bits(
    number, small_cache, tiny_config, tiny_run, tmp_path, observer, failing_sync
):
    with failing_sync(number, KilledError()), pytest.raises(KilledError):
        run_federation(tiny_config, small_cache, tmp_path / "run", observer)
    run_federation(tiny_config, small_cache, tmp_path / "run", observer, resume=True)
    assert same(load_weights(tmp_path / "run")[0], load_weights(tiny_run)[0])


def test_lost_weights_come_back_from_the_checkpoint(
    small_cache, tiny_config, tiny_run, tmp_path, observer
):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "model.safetensors").unlink()
    run_federation(tiny_config, small_cache, run, observer, resume=True)
    assert observer.steps == []
    assert load_weights(run)[1] == 2
    assert same(load_weights(run)[0], load_weights(tiny_run)[0])


def test_a_line_of_the_log_that_a_kill_cut_short_does_no_harm(
    small_cache, tiny_config, tiny_run, tmp_path, observer
):
    run = tmp_path / "run"
    run_federation(tiny_config, small_cache, run, observer)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"event": "round", "rou')
    assert len(read_rounds(run)) == 2
    run_federation(tiny_config, small_cache, run, observer, resume=True)
    assert len(read_rounds(run)) == 2
    events = [line for line in (run / "log.jsonl").read_text().splitlines() if '"resumed"' in line]
    assert len(events) == 1


def test_a_slice_that_is_left_over_is_a_batch_of_its_own_where_the_network_can_do_with_it(
    small_cache, tiny_config, tmp_path, observer
):
    counts = [SliceDataset(small_cache).count((client,)) for client in (0, 1)]
    changes = {"batch_size": counts[0] - 1, "rounds": 1}
    run_federation(tiny_config.model_copy(update=changes), small_cache, tmp_path / "run", observer)
    assert observer.plan == (1, 2 + math.ceil(counts[1] / (counts[0] - 1)))
