"""How long clients train in a round and at which rate, by hand and in whole runs."""

import json
import math

import pytest
import torch

from cache_schema.errors import InputError
from training.checkpoint import load_weights
from training.data import SliceDataset
from training.federated.client import LocalClients
from training.federated.engine import run_federation
from training.federated.schedule import (
    Pace,
    adaptive_epochs,
    count_local_steps,
    plan_pace,
    plateau_factor,
)
from training.runlog import RoundRecord, read_rounds


def rounds(*points):
    return [
        RoundRecord(number, loss, {"ET": dice - 0.2, "TC": dice, "WT": dice + 0.2}, 1.0, ())
        for number, (loss, dice) in enumerate(points, start=1)
    ]


def configured(tiny_config, **settings):
    return tiny_config.model_copy(update=settings)


def test_adaptive_epochs_fall_with_the_root_of_the_loss():
    assert adaptive_epochs(8, []) == 1
    assert adaptive_epochs(8, [2.0]) == 8
    assert adaptive_epochs(8, [2.0, 1.0]) == 6  # 8 * sqrt(0.5) = 5.66
    assert adaptive_epochs(8, [2.0, 1.0, 0.5]) == 4  # the first loss counts, not the one before
    assert adaptive_epochs(8, [2.0, 0.01]) == 1  # 0.57


def test_adaptive_epochs_stay_between_one_and_the_most():
    assert adaptive_epochs(3, [1.0, 50.0]) == 3
    assert adaptive_epochs(3, [1.0, 0.0]) == 1
    assert adaptive_epochs(3, [1.0, -0.5]) == 1
    assert adaptive_epochs(3, [0.0, 0.0]) == 3


def test_a_plateau_cuts_the_rate_to_a_fifth_and_begins_anew():
    scores = [0.3, 0.5, 0.4, 0.5, 0.1, 0.2, 0.3, 0.4, 0.6]
    factors = [plateau_factor(scores[:count], 3) for count in range(len(scores) + 1)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04])


def test_the_rate_is_not_cut_below_a_fiftieth():
    assert plateau_factor([0.5] + [0.4] * 9, 3) == 0.02


def test_by_default_nothing_depends_on_the_rounds_before(tiny_config):
    config = configured(tiny_config, local_epochs=4)
    assert plan_pace(config, 3, rounds((1.0, 0.5), (0.1, 0.4))) == Pace(4)
    assert plan_pace(config, 3, []) == Pace(4)


def test_both_schedules_look_at_all_rounds_before(tiny_config):
    settings = {"local_epochs": 5, "epoch_schedule": "adaptive"}
    config = configured(tiny_config, **settings, lr_schedule="plateau", lr_patience=1)
    history = rounds((1.0, 0.5), (0.3, 0.4))
    assert plan_pace(config, 3, history) == Pace(3, 0.2)  # 5 * sqrt(0.3) = 2.7
    with pytest.raises(InputError, match=r"lacks rounds before round 3.*log\.jsonl"):
        plan_pace(config, 3, history[:1])


def test_local_steps_take_the_place_of_epochs(tiny_config):
    config = configured(tiny_config, local_epochs=3)
    assert count_local_steps(config, 7) == 21
    assert count_local_steps(config, 7, 2) == 14
    assert count_local_steps(configured(config, local_steps=5), 7, 2) == 5


@pytest.fixture
def slices_read(monkeypatch):
    """The slices that are read in this process, in order."""
    read, honest = [], SliceDataset.__getitem__

    def getitem(self, index):
        read.append(index)
        return honest(self, index)

    monkeypatch.setattr(SliceDataset, "__getitem__", getitem)
    return read


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("steps", [1, 11])
def test_every_client_takes_just_as_many_steps_whatever_its_slices(
    steps, small_cache, tiny_config, tmp_path, observer, slices_read
):
    config = configured(tiny_config, batch_size=8, local_steps=steps)
    run_federation(config, small_cache, tmp_path / "run", observer)
    records = read_rounds(tmp_path / "run")
    assert [[c.num_steps for c in record.clients] for record in records] == [[steps, steps]] * 2
    per_epoch = [math.ceil(client.num_examples / 8) for client in records[0].clients]
    assert 1 < min(per_epoch) < 11 < max(per_epoch)  # cut in the first pass and in a later one
    assert observer.plan == (2, len(observer.steps)) == (2, 4 * steps)
    if steps == 1:
        assert len(slices_read) == 4 * 8  # nothing is read in vain


def test_steps_of_whole_passes_are_the_same_bits_as_epochs(
    small_cache, tiny_config, tmp_path, observer
):
    dataset = SliceDataset(small_cache)
    per_epoch = {math.ceil(dataset.count((client,)) / 16) for client in (0, 1)}
    batch = 16
    while len(per_epoch) > 1:  # of a size that gives both clients as many batches
        batch *= 2
        per_epoch = {math.ceil(dataset.count((client,)) / batch) for client in (0, 1)}
    config = configured(tiny_config, batch_size=batch, local_epochs=2)
    run_federation(config, small_cache, tmp_path / "epochs", observer)
    steps = configured(config, local_epochs=7, local_steps=2 * per_epoch.pop())
    run_federation(steps, small_cache, tmp_path / "steps", observer)
    assert same(load_weights(tmp_path / "steps")[0], load_weights(tmp_path / "epochs")[0])


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


@pytest.mark.parametrize(
    "settings",
    [
        {"local_steps": 3},
        {
            "epoch_schedule": "adaptive",
            "local_epochs": 3,
            "lr_schedule": "plateau",
            "lr_patience": 1,
        },
    ],
)
@pytest.mark.parametrize("done", [1, 2])
def test_a_killed_run_ends_with_the_same_bits_and_bytes(
    settings, done, small_cache, tiny_config, tmp_path, observer
):
    config = configured(tiny_config, rounds=3, **settings)
    run_federation(config, small_cache, tmp_path / "whole", observer)

    def kill(**told):
        if told["round_number"] == done + 1:
            raise KilledError

    observer.step = kill
    with pytest.raises(KilledError):
        run_federation(config, small_cache, tmp_path / "run", observer)
    del observer.step
    run_federation(config, small_cache, tmp_path / "run", observer, resume=True)
    assert same(load_weights(tmp_path / "run")[0], load_weights(tmp_path / "whole")[0])
    mine, theirs = (
        [(r.loss, r.figures, r.num_bytes, r.total_bytes) for r in read_rounds(tmp_path / name)]
        for name in ("run", "whole")
    )
    assert mine == theirs
    assert [total / each for _, _, each, total in mine] == [1, 2, 3]


def test_a_run_with_both_schedules_follows_its_own_log(
    small_cache, tiny_config, tmp_path, observer
):
    settings = {"epoch_schedule": "adaptive", "lr_schedule": "plateau", "lr_patience": 1}
    config = configured(tiny_config, rounds=4, local_epochs=6, learning_rate=0.05, **settings)
    run_federation(config, small_cache, tmp_path / "run", observer)
    records = read_rounds(tmp_path / "run")
    epochs = [record.figures["local_epochs"] for record in records]
    assert epochs == [adaptive_epochs(6, [r.loss for r in records[:k]]) for k in range(4)]
    assert epochs[:2] == [1, 6]
    assert epochs[-1] < 6
    per_epoch = [client.num_steps for client in records[0].clients]
    assert [c.num_steps for c in records[-1].clients] == [epochs[-1] * n for n in per_epoch]
    rates = [record.figures["learning_rate"] for record in records]
    scores = [record.mean_dice for record in records]
    assert rates == [0.05 * plateau_factor(scores[:k], 1) for k in range(4)]


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1.0), ("plateau", 0.2)])
def test_the_rate_is_what_the_schedule_says_in_every_step(
    schedule, factor, small_cache, tiny_config, tmp_path, observer, monkeypatch
):
    rates, honest = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), honest(self))[1],
    )
    train = LocalClients.train

    def flat(self, *args):  # no round is better than the first
        for reply in train(self, *args):
            reply.dice.update(dict.fromkeys(reply.dice, 0.5))
            yield reply

    monkeypatch.setattr(LocalClients, "train", flat)
    config = configured(tiny_config, rounds=3, local_steps=1, lr_schedule=schedule, lr_patience=1)
    run_federation(config, small_cache, tmp_path / "run", observer)
    assert rates == pytest.approx([0.01] * 4 + [0.01 * factor] * 2)
    last = read_rounds(tmp_path / "run")[-1]
    assert ("learning_rate" in last.figures) == (schedule == "plateau")


@pytest.fixture
def interrupted(small_cache, tiny_config, tmp_path, observer):
    """A run whose schedule looks back, killed after its second round, and how it goes on."""
    config = configured(tiny_config, rounds=3, lr_schedule="plateau", lr_patience=1)

    def kill(**told):
        if told["round_number"] == 3:
            raise KilledError

    observer.step = kill
    with pytest.raises(KilledError):
        run_federation(config, small_cache, tmp_path / "run", observer)
    del observer.step
    return lambda: run_federation(config, small_cache, tmp_path / "run", observer, resume=True)


@pytest.mark.parametrize("name", ["loss", "dice"])
def test_a_schedule_does_not_go_on_from_rounds_that_the_log_tells_otherwise(
    name, interrupted, tmp_path
):
    path = tmp_path / "run" / "log.jsonl"
    whole = path.read_text()
    events = [json.loads(line) for line in whole.splitlines()]
    first = next(event for event in events if event["event"] == "round")
    first[name] = 0.125 if name == "loss" else dict.fromkeys(first["dice"], 0.125)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(InputError, match=r"log\.jsonl has changed before the last round"):
        interrupted()
    path.write_text(whole)
    interrupted()
    assert len(read_rounds(tmp_path / "run")) == 3


def test_a_schedule_does_not_go_on_without_a_round_that_is_damaged(interrupted, tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    path.write_text(path.read_text().replace('"event": "round"', '"event": 7', 1))
    with pytest.raises(InputError, match=r"log\.jsonl"):
        interrupted()
