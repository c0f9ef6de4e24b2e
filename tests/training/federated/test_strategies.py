"""Every strategy in the engine, on a cache of five clients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import cli
from cache_schema.manifest import write_manifest
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.checkpoint import load_resume
from training.federated.client_memory import ClientMemory
from training.federated.engine import MEMORY_FOLDER, run_federation
from training.federated.strategies.registry import STRATEGIES
from training.runlog import read_rounds

OPTIONS = {"dp-fedavg": {"seed": "1"}, "krum": {"byzantine": "0"}}
"""Noise that can be drawn again, and a guarantee that four clients can give."""


@pytest.fixture(scope="module")
def cache(small_options, small_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("five") / "cache"
    plan = make_plan([small_tree], small_options.model_copy(update={"clients": 5}))
    shards = [make_shard(s, folder, plan.preprocessing, lambda _: None) for s in plan.shards]
    write_manifest(folder, assemble_manifest(plan, shards))
    return folder


@pytest.fixture
def config(tiny_config):
    return tiny_config.model_copy(update={"rounds": 3, "batch_size": 32})


class KilledError(Exception):
    """Stands for a kill -9: nothing after it runs."""


def same(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", STRATEGIES)
def test_three_rounds_from_the_command_line_have_the_bits_of_a_run_that_was_killed_between(
    name, cache, config, tmp_path, observer
):
    peaceful, killed = tmp_path / "peaceful", tmp_path / "killed"
    options = (
        "--model tiny --weights none --rounds 3 --local-epochs 1 --batch-size 32 --crop 32 "
        "--learning-rate 0.01 --loader-workers 0 --device cpu --fraction 0.9 --strategy"
    )
    command = ["fed", "--cache", str(cache), "--run", str(peaceful), *options.split(), name]
    own = OPTIONS.get(name, {})
    command += [
        word for key, value in own.items() for word in ("--strategy-option", f"{key}={value}")
    ]
    result = CliRunner().invoke(cli.train, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rounds = read_rounds(peaceful)
    assert [len(record.clients) for record in rounds] == [4, 4, 4]  # 0.9 * 5 = 4.5
    assert len({tuple(c.client for c in record.clients) for record in rounds}) > 1

    settings = {"strategy": name, "strategy_options": own, "fraction": 0.9}
    config = config.model_copy(update=settings)
    honest = observer.step

    def step(**told):
        honest(**told)
        if told["round_number"] == 2 and len({c for r, c, _ in observer.steps if r == 2}) == 3:
            raise KilledError

    observer.step = step
    with pytest.raises(KilledError):
        run_federation(config, cache, killed, observer)
    del observer.step
    run_federation(config, cache, killed, observer, resume=True)
    for file in ("model.safetensors", "resume.safetensors"):
        assert same(killed / file, peaceful / file)
    (_, position), (_, expected) = (load_resume(run) for run in (killed, peaceful))
    assert position == expected
    for client, number in position["remembered"].items():
        mine, theirs = (
            ClientMemory(run / MEMORY_FOLDER).load(int(client), number)
            for run in (killed, peaceful)
        )
        assert mine.keys() == theirs.keys() != set()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_liars_of_no_number_are_refused_and_named(cache, config, tmp_path, observer):
    config = config.model_copy(update={"byzantine": "nan:2"})
    run_federation(config, cache, tmp_path / "run", observer)
    (started, *_) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    liars = json.loads(started)["byzantine"]
    assert len(liars) == 2
    for record in read_rounds(tmp_path / "run"):
        assert [c.client for c in record.clients if c.refused] == liars
        assert all("not finite" in c.refused for c in record.clients if c.refused)


def test_a_client_whose_update_is_refused_keeps_nothing_of_the_round(
    cache, config, tmp_path, observer
):
    settings = {"strategy": "scaffold", "byzantine": "nan:2"}
    run_federation(config.model_copy(update=settings), cache, tmp_path / "run", observer)
    refused = {c.client for c in read_rounds(tmp_path / "run")[0].clients if c.refused}
    assert len(refused) == 2
    _, position = load_resume(tmp_path / "run")
    assert position["remembered"] == {str(k): 3 for k in range(5) if k not in refused}


def test_absent_clients_are_on_record_and_do_not_train(cache, config, tmp_path, observer):
    config = config.model_copy(update={"dropout_rate": 0.5})
    run_federation(config, cache, tmp_path / "run", observer)
    rounds = read_rounds(tmp_path / "run")
    assert any(record.absent for record in rounds)
    for record in rounds:
        there = {client.client for client in record.clients}
        assert sorted(there | set(record.absent)) == [0, 1, 2, 3, 4]
        assert {client for number, client, _ in observer.steps if number == record.round} == there
    assert observer.plan == (3, len(observer.steps))


def test_bytes_are_counted_and_bfloat16_halves_them(cache, config, tmp_path, observer):
    sizes = {}
    for exchange in ("fp32", "bf16"):
        settings = config.model_copy(update={"exchange": exchange, "rounds": 1})
        run_federation(settings, cache, tmp_path / exchange, observer)
        (record,) = read_rounds(tmp_path / exchange)
        sizes[exchange] = {(c.bytes_received, c.bytes_sent) for c in record.clients}
        assert record.num_bytes == 5 * sum(next(iter(sizes[exchange])))
    # Weights 6*4*9 + 6 + 3*6 + 3, BatchNorm 4*6, and one counter of eight bytes.
    floats = 216 + 6 + 24 + 18 + 3
    assert sizes["fp32"] == {(floats * 4 + 8, floats * 4 + 8)}
    assert sizes["bf16"] == {(floats * 2 + 8, floats * 2 + 8)}
