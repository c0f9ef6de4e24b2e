"""Networks under one budget: trained once, each in a process of its own, and gone on with."""

import json
import shutil
from unittest.mock import Mock

import pytest

import training.compare
from cache_schema.errors import InputError
from training.compare import (
    compare,
    cost_table,
    do,
    scored_runs,
    seconds_per_step,
    write_comparison,
)
from training.config import read_config
from training.contestants import Budget, read_contestants
from training.cost import Cost, read_cost
from training.evaluate import evaluate
from training.score_files import read_scores

SETTINGS = {
    "weights": "none",
    "crop": 32,
    "depth": 32,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "loader_workers": 0,
    "device": "cpu",
    "seed": 0,
}
STEPS = Budget(steps=4)


class Told:
    def __init__(self):
        self.started_with, self.failures = [], []

    def started(self, name, folder, *, is_finished):
        self.started_with.append((name, folder.name, is_finished))

    def failed(self, name, reason):
        self.failures.append((name, reason))


def run(models, cache, out, budget=STEPS, observer=None, **changes):
    return compare(
        read_contestants([models]),
        cache,
        out,
        budget=budget,
        settings={**SETTINGS, **changes},
        observer=observer or Told(),
    )


@pytest.fixture
def here(monkeypatch):
    """Do the jobs in this process, which knows the tests' own networks."""
    jobs = []

    def work(job):
        jobs.append(job.contestant.name)
        do(job)

    monkeypatch.setattr(training.compare, "_in_own_process", work)
    return jobs


@pytest.fixture(scope="module")
def finished(small_cache, tmp_path_factory):
    """A comparison of a flat and a deep network, the latter also with flips."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.compare, "_in_own_process", do)
        results = run("tiny,tiny3d,tiny3d+tta", small_cache, out)
    return out, results


def test_every_network_takes_the_same_number_of_steps_and_is_scored_like_a_run_of_its_own(
    finished, small_cache
):
    out, results = finished
    assert [result.contestant.name for result in results] == ["tiny", "tiny3d", "tiny3d+tta"]
    assert {result.cost.steps for result in results} == {4}
    for result in results[:2]:
        alone = evaluate(out / result.contestant.name, small_cache, on_case=lambda *_: None)
        for test_set, means in alone.means().items():
            assert result.evaluation.means()[test_set] == pytest.approx(means, abs=1e-6)
    assert results[2].evaluation.tta
    assert not results[1].evaluation.tta
    assert results[1].cost == results[2].cost
    assert read_config(out / "tiny").depth is None
    assert read_config(out / "tiny3d").depth == 32


def test_parameters_and_arithmetic_are_those_of_each_network(finished):
    _, (flat, deep, _) = finished
    assert flat.parameters == (4 * 6 * 9 + 6) + 2 * 6 + (6 * 3 + 3)
    assert deep.parameters == (4 * 6 * 27 + 6) + 2 * 6 + (6 * 3 + 3)
    assert deep.flops == 2 * 32**3 * (4 * 6 * 27 + 6 * 3)


def test_the_same_command_again_trains_nothing(finished, small_cache, here):
    out, before = finished
    told = Told()
    results = run("tiny,tiny3d,tiny3d+tta", small_cache, out, observer=told)
    assert here == []
    assert [is_finished for *_, is_finished in told.started_with] == [True] * 3
    assert [r.evaluation.means() for r in results] == [r.evaluation.means() for r in before]


def test_what_is_missing_is_made_and_nothing_else(finished, small_cache, here, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "tiny3d+tta" / "evaluation.json").unlink()
    before = (out / "tiny3d" / "model.safetensors").read_bytes()
    run("tiny,tiny3d,tiny3d+tta", small_cache, out)
    assert here == ["tiny3d+tta"]
    assert (out / "tiny3d" / "model.safetensors").read_bytes() == before
    assert read_scores(out / "tiny3d+tta")


def test_another_budget_or_setting_does_not_go_on_in_the_same_folder(finished, small_cache, here):
    for changes, message in (
        ({"budget": Budget(steps=8)}, r"comparison under --steps 4, not --steps 8: .*--out"),
        ({"budget": Budget(minutes=8.0)}, r"comparison under --steps 4, not --minutes 8: .*--out"),
        ({"learning_rate": 0.5}, r"run with other settings; .*--out"),
    ):
        with pytest.raises(InputError, match=message):
            run("tiny", small_cache, finished[0], **changes)
    assert here == []


def test_minutes_become_steps_by_the_time_that_one_takes_and_stay_so(
    small_cache, here, tmp_path, monkeypatch
):
    monkeypatch.setattr(training.compare, "seconds_per_step", lambda *_: 1.5)
    (result,) = run("tiny", small_cache, tmp_path, Budget(minutes=0.15))
    assert result.cost.steps == 6  # of 9 seconds
    monkeypatch.setattr(training.compare, "seconds_per_step", lambda *_: 0.1)
    (again,) = run("tiny", small_cache, tmp_path, Budget(minutes=0.15))
    assert again.cost == result.cost
    assert len(here) == 1


def test_the_first_step_is_not_in_the_time_of_one(small_cache, tiny_config, monkeypatch):
    moments = iter([100.0, 102.0, 104.0, 106.0, 108.0])
    monkeypatch.setattr("training.compare.time.perf_counter", lambda: next(moments))

    def train(config, cache, run, clock):
        assert (config.rounds, config.local_steps) == (1, 5)
        for _ in range(5):
            clock.step()

    monkeypatch.setattr(training.compare, "run_central", train)
    assert seconds_per_step(tiny_config, small_cache, 5) == 2.0


def test_one_that_fails_does_not_stop_the_others(small_cache, here, tmp_path, monkeypatch):
    central = training.compare.run_central

    def train(config, cache, run, observer, **options):
        if config.model == "tiny3d":
            raise RuntimeError("out of memory: asked for 80 GB\nmore lines")
        central(config, cache, run, observer, **options)

    monkeypatch.setattr(training.compare, "run_central", train)
    told = Told()
    results = run("tiny3d,tiny", small_cache, tmp_path, observer=told)
    assert told.failures == [("tiny3d", "tiny3d: RuntimeError: out of memory: asked for 80 GB")]
    assert [result.contestant.name for result in results] == ["tiny"]


def test_weights_are_those_of_networks_of_slices(small_cache, here, tmp_path):
    with pytest.raises(InputError, match=r"--weights .*nowhere\.pth"):
        run("tiny3d,unetmm", small_cache, tmp_path, weights=str(tmp_path / "nowhere.pth"))
    assert here == []  # found before anything was trained
    (result,) = run("tiny3d", small_cache, tmp_path, weights=str(tmp_path / "nowhere.pth"))
    assert result.config.weights == "none"


def test_what_cannot_be_is_refused_before_anything_is_trained(small_cache, here, tmp_path):
    for models, message in (
        ("tiny,alexnet", "--model alexnet: unknown"),
        ("tiny,tiny3d:widht=3", "widht=3: tiny3d has no such option"),
    ):
        with pytest.raises(InputError, match=message):
            run(models, small_cache, tmp_path)
    assert here == []
    assert not any(tmp_path.iterdir())


def test_a_network_of_this_release_is_trained_in_a_process_of_its_own(small_cache, tmp_path):
    told = Told()
    results = run("unetrpp:size=tiny", small_cache, tmp_path, Budget(steps=2), told)
    assert told.failures == []
    (result,) = results
    assert result.cost.steps == 2
    assert result.cost.peak_bytes > 50e6
    assert read_cost(tmp_path / "unetrpp-size=tiny") == result.cost


def test_a_process_that_is_killed_is_told_of(small_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(training.compare, "do", _die)
    told = Told()
    assert run("unetrpp:size=tiny", small_cache, tmp_path, observer=told) == ()
    ((_, reason),) = told.failures
    assert "process was killed" in reason
    assert "\n" not in reason


def _die(job):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_tables_and_document_say_the_same(finished):
    out, results = finished
    runs = scored_runs(results)
    assert (runs[0].name, runs[0].parameters) == ("tiny", results[0].parameters)
    table = cost_table(results)
    assert table.row_count == 3
    document = json.loads(write_comparison(out, results).read_text())
    assert [row["name"] for row in document["rows"]] == ["tiny", "tiny3d", "tiny3d+tta"]
    assert document["rows"][1]["steps"] == 4
    assert document["leakage"]["protocol"] == "patient"
    first = results[0]
    shown = next(iter(table.columns[1].cells))
    assert shown == f"{100 * first.evaluation.means()['all']['mean']:.2f}"
    assert list(table.columns[4].cells) == ["4"] * 3


def test_memory_that_nobody_tells_is_left_open(finished):
    _, (first, *_) = finished
    unknown = training.compare.Result(
        first.contestant, first.config, first.evaluation, 1, 2, Cost("mps", 4, 2.0, None)
    )
    table = cost_table([unknown])
    assert list(table.columns[-1].cells) == ["-"]
    assert list(table.columns[-2].cells) == ["0.500"]


def test_another_budget_is_taken_where_nothing_was_begun(small_cache, here, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.compare, "run_central", Mock(side_effect=MemoryError("too large")))
        assert run("tiny", small_cache, tmp_path, Budget(steps=9)) == ()
    (result,) = run("tiny", small_cache, tmp_path, Budget(steps=4))
    assert result.cost.steps == 4


def test_a_batch_that_a_network_cannot_be_trained_on_is_found_before_any_is(
    small_cache, here, tmp_path
):
    with pytest.raises(InputError, match=r"^--batch-size 1: "):
        run("tiny,unetmm", small_cache, tmp_path, batch_size=1, crop=32, weights="none")
    assert here == []
