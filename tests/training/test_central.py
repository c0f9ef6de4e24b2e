"""Central training: the same local loop, one optimiser, and a resume that changes no bit."""

import json
import math
import shutil
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file

import training.fit
from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from training import checkpoint
from training.central import run_central
from training.checkpoint import load_weights
from training.config import CENTRAL, TrainConfig
from training.data import SliceDataset
from training.runlog import EVERYBODY, read_rounds


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


@pytest.fixture(scope="module")
def config(tiny_config) -> TrainConfig:
    settings = {"strategy": CENTRAL, "rounds": 2, "checkpoint_steps": 2, "batch_size": 8}
    return tiny_config.model_copy(update=settings)


@pytest.fixture(scope="module")
def undisturbed(small_cache, config, tmp_path_factory):
    run = tmp_path_factory.mktemp("central") / "run"
    run_central(config, small_cache, run, Counting())
    return run


class Counting:
    """Counts steps and can end everything at one of them."""

    def __init__(self, kill_at=math.inf):
        self.steps, self.kill_at, self.plan = [], kill_at, None

    def started(self, *, num_rounds, num_steps):
        self.plan = (num_rounds, num_steps)

    def step(self, *, round_number, client, loss):
        self.steps.append((round_number, client, loss))
        if len(self.steps) == self.kill_at:
            raise KilledError

    def round_done(self, record):
        pass


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_every_epoch_takes_every_clients_slices_once(small_cache, config, tmp_path):
    watch = Counting()
    run_central(config, small_cache, tmp_path / "run", watch)
    num_slices = len(SliceDataset(small_cache))
    num_steps = math.ceil(num_slices / 8)
    assert watch.plan == (2, 2 * num_steps)
    assert [number for number, _, _ in watch.steps] == [1] * num_steps + [2] * num_steps
    first, second = read_rounds(tmp_path / "run")
    assert first.clients[0].client == EVERYBODY
    assert first.clients[0].num_examples == num_slices
    assert (first.round, second.round) == (1, 2)
    assert first.loss == pytest.approx(
        sum(loss for _, _, loss in watch.steps[:num_steps]) / num_steps
    )


def test_the_optimiser_lives_through_all_epochs(small_cache, config, undisturbed, monkeypatch):
    saved = load_file(undisturbed / checkpoint.RESUME_NAME)
    steps = {float(v) for name, v in saved.items() if name.endswith("/step")}
    assert steps == {2.0 * math.ceil(len(SliceDataset(small_cache)) / 8)}


@pytest.mark.parametrize("moment", range(1, 20, 3))
def test_a_run_that_was_killed_in_a_step_ends_with_the_same_bits(
    moment, small_cache, config, undisturbed, tmp_path
):
    run = tmp_path / "run"
    with pytest.raises(KilledError):
        run_central(config, small_cache, run, Counting(kill_at=moment))
    again = Counting()
    run_central(config, small_cache, run, again, resume=True)
    total = 2 * math.ceil(len(SliceDataset(small_cache)) / 8)
    assert len(again.steps) == again.plan[1] <= total - moment + 2  # at most two are done again
    assert same(load_weights(run)[0], load_weights(undisturbed)[0])
    mine, theirs = (
        [(r.round, r.loss, r.dice) for r in read_rounds(each)] for each in (run, undisturbed)
    )
    assert mine == theirs


def test_a_resumed_epoch_has_taken_the_time_before_the_kill_too(small_cache, config, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KilledError):
        run_central(config, small_cache, run, Counting(kill_at=4))
    groups, position = checkpoint.load_resume(run)
    assert position["done"]["num_steps"] == 2
    assert position["seconds"] > 0
    checkpoint.save_resume(run, groups, {**position, "seconds": 1000.0})
    run_central(config, small_cache, run, Counting(), resume=True)
    first, second = read_rounds(run)
    assert first.seconds > 1000 > second.seconds


@pytest.mark.parametrize("number", range(1, 8, 2))
def test_a_run_that_was_killed_while_it_saved_ends_with_the_same_bits(
    number, small_cache, config, undisturbed, tmp_path, failing_sync
):
    run = tmp_path / "run"
    with failing_sync(number, KilledError()), pytest.raises(KilledError):
        run_central(config, small_cache, run, Counting())
    run_central(config, small_cache, run, Counting(), resume=True)
    assert same(load_weights(run)[0], load_weights(undisturbed)[0])


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    small_cache, config, undisturbed, tmp_path, failing_sync
):
    run = tmp_path / "run"
    with (
        failing_sync(2, OSError(28, "No space left on device")),
        pytest.raises(InputError, match=r"resume\.safetensors cannot be written .No space"),
    ):
        run_central(config, small_cache, run, Counting())
    run_central(config, small_cache, run, Counting(), resume=True)
    assert same(load_weights(run)[0], load_weights(undisturbed)[0])


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(
    small_cache, config, undisturbed, tmp_path, monkeypatch
):
    run, honest, calls = tmp_path / "run", training.fit.deep_supervision_loss, []

    def sometimes(logits, target):
        calls.append(1)
        return honest(logits, target) * (math.nan if len(calls) == 6 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(training.fit, "deep_supervision_loss", sometimes)
        with pytest.raises(InputError, match=r"epoch 1: loss is nan at step 6; .* is whole"):
            run_central(config, small_cache, run, Counting())
    run_central(config, small_cache, run, Counting(), resume=True)
    assert same(load_weights(run)[0], load_weights(undisturbed)[0])


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_corrupt_shard_in_the_middle_of_an_epoch_is_named_and_resumable(
    loader_workers, cache_copy, config, undisturbed, tmp_path
):
    config = config.model_copy(update={"loader_workers": loader_workers})
    shard = cache_copy / read_manifest(cache_copy).client_shards(1)[-1]
    sound = shard.read_bytes()
    with h5py.File(shard) as file:
        chunk = file["image"].id.get_chunk_info(7)
    broken = bytearray(sound)
    broken[chunk.byte_offset + chunk.size - 1] ^= 1
    run = tmp_path / "run"
    shard.write_bytes(broken)
    with pytest.raises(InputError) as caught:
        run_central(config, cache_copy, run, Counting())
    assert str(caught.value).startswith(
        f"shard {shard} cannot be read (image of row 7 differs from"
    )
    assert "\n" not in str(caught.value)
    shard.write_bytes(sound)
    run_central(config, cache_copy, run, Counting(), resume=True)
    assert same(load_weights(run)[0], load_weights(undisturbed)[0])


def test_a_finished_run_is_resumed_to_nothing(small_cache, config, undisturbed):
    before = load_weights(undisturbed)[0]
    watch = Counting()
    run_central(config, small_cache, undisturbed, watch, resume=True)
    assert watch.steps == []
    assert same(load_weights(undisturbed)[0], before)


def test_other_settings_or_another_cache_cannot_go_on_with_a_run(
    small_cache, cache_copy, config, undisturbed
):
    other = config.model_copy(update={"learning_rate": 0.5, "seed": 9})
    with pytest.raises(
        InputError, match=r"--learning-rate 0.5 instead of 0.01, --seed 9 instead of 0"
    ):
        run_central(other, small_cache, undisturbed, Counting(), resume=True)
    path = cache_copy / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="was trained on another cache"):
        run_central(config, cache_copy, undisturbed, Counting(), resume=True)


def test_without_resume_a_run_is_not_touched(small_cache, config, undisturbed):
    with pytest.raises(InputError, match="holds a run already; go on with it with --resume"):
        run_central(config, small_cache, undisturbed, Counting())
    lines = (undisturbed / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("started") == 1


def told(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(e["epoch"], e["done"], e["loss"]) for e in lines if e["event"] == "steps"]


def test_the_log_tells_at_most_twenty_times_an_epoch_how_far_it_is(
    small_cache, config, undisturbed, monkeypatch, tmp_path
):
    watch = Counting()
    with monkeypatch.context() as patch:
        patch.setattr("training.central.TOLD_PER_EPOCH", 3)
        run_central(config, small_cache, tmp_path / "run", watch)
    per_epoch = watch.plan[1] // 2
    assert per_epoch > 3
    every = math.ceil(per_epoch / 3)
    marks = range(every, per_epoch + 1, every)
    losses = [loss for _, _, loss in watch.steps]
    expected = [(e, k, losses[(e - 1) * per_epoch + k - 1]) for e in (1, 2) for k in marks]
    assert told(tmp_path / "run") == expected
    assert 10 <= sum(epoch == 1 for epoch, *_ in told(undisturbed)) <= 20


def test_a_resumed_epoch_is_counted_on(small_cache, config, undisturbed, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KilledError):
        run_central(config, small_cache, run, Counting(kill_at=3))  # step 2 is the last one saved
    before = told(run)
    run_central(config, small_cache, run, Counting(), resume=True)
    assert [done for _, done, _ in before] == [2]
    assert told(run) == told(undisturbed)


@pytest.fixture(scope="module")
def by_steps(config):
    """Two epochs of 30 steps; a pass has fewer."""
    return config.model_copy(update={"local_steps": 30, "checkpoint_steps": 7})


def test_an_epoch_of_steps_goes_on_with_another_order_after_a_pass(
    small_cache, config, by_steps, undisturbed, tmp_path
):
    counted, by_passes = Counting(), read_rounds(undisturbed)[0]
    run_central(by_steps, small_cache, tmp_path / "run", counted)
    assert counted.plan == (2, 60)
    assert [epoch for epoch, *_ in counted.steps] == [1] * 30 + [2] * 30
    per_pass = by_passes.clients[0].num_steps
    assert per_pass < 30
    assert [record.clients[0].num_steps for record in read_rounds(tmp_path / "run")] == [30, 30]


def test_an_epoch_of_steps_that_was_killed_goes_on_with_the_same_bits(
    small_cache, by_steps, tmp_path
):
    run_central(by_steps, small_cache, tmp_path / "whole", Counting())
    with pytest.raises(KilledError):
        run_central(by_steps, small_cache, tmp_path / "killed", Counting(kill_at=28))
    again = Counting()
    run_central(by_steps, small_cache, tmp_path / "killed", again, resume=True)
    assert again.plan == (2, 60 - 21)
    whole, killed = (load_weights(tmp_path / name)[0] for name in ("whole", "killed"))
    assert same(whole, killed)


def test_there_is_nothing_to_resume_in_an_empty_folder(small_cache, config, tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        run_central(config, small_cache, tmp_path, Counting(), resume=True)


def test_lost_weights_come_back_from_the_checkpoint(small_cache, config, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    (run / "model.safetensors").unlink()
    again = Counting()
    run_central(config, small_cache, run, again, resume=True)
    assert again.steps == []
    assert load_weights(run)[1] == load_weights(undisturbed)[1] == 2
    assert same(load_weights(run)[0], load_weights(undisturbed)[0])


def test_a_slice_that_is_left_over_is_a_batch_of_its_own_where_the_network_can_do_with_it(
    small_cache, config, tmp_path
):
    num_slices = len(SliceDataset(small_cache))
    changes = {"batch_size": num_slices - 1, "rounds": 1}
    observer = Counting()
    run_central(config.model_copy(update=changes), small_cache, tmp_path / "run", observer)
    assert observer.plan == (1, 2)
