import math
import shutil

import numpy as np
import pytest
import torch

import training.evaluate
from cache_schema.errors import InputError
from cache_schema.manifest import Options, read_manifest, write_manifest
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.checkpoint import WEIGHTS_NAME
from training.config import read_config
from training.data.volumes import CaseVolume, VolumeDataset
from training.evaluate import evaluate, require_runs
from training.models.initial import initial_model
from training.models.trained import trained_model
from training.scores import Scoring


def volume(shape, z, plane):
    """A case with given kept slices, in planes that may be larger than its own."""
    image = np.zeros((len(z), 4, *plane), np.float16)
    label = np.zeros((len(z), *plane), np.uint8)
    affine = np.diag([-1.0, -2.0, 5.0, 1.0])
    return CaseVolume("a", "p", "brats2018", image, label, np.array(z), affine, shape)


def test_scores_are_those_of_the_whole_volume(tiny_run, monkeypatch):
    # Two voxels of ET on neighbouring kept slices, z 1 and 5, of 5 mm each, and 2 mm aside.
    case = volume((3, 5, 7), [1, 5], (4, 6))
    case.label[0, 1, 1] = 4
    prediction = np.zeros_like(case.label)
    prediction[1, 1, 2] = 4
    monkeypatch.setattr(training.evaluate, "predict_labels", lambda *_, **__: prediction)
    config = read_config(tiny_run)
    score = training.evaluate.score_volume(initial_model(config), case, config, Scoring())
    assert score.values["hd95_mm"]["ET"] == math.hypot(4 * 5, 2)
    assert score.values["specificity"]["ET"] == 103 / 104  # of 3 x 5 x 7 voxels, not of two slices


def test_every_test_case_is_scored_against_its_own_truth(small_cache, tiny_run, monkeypatch):
    tests = VolumeDataset(small_cache, split="test")
    truths = [tests[index] for index in range(len(tests))]
    asked = []

    def oracle(model, image, target, **settings):
        asked.append(settings)
        return next(v.label for v in truths if np.array_equal(v.image, image))

    monkeypatch.setattr(training.evaluate, "predict_labels", oracle)
    told = []
    result = evaluate(
        tiny_run,
        small_cache,
        scoring=Scoring(tta=True, postprocess_et=9, batch_size=3),
        on_case=lambda name, total: told.append((name, total)),
    )
    expected = [c.case_id for c in read_manifest(small_cache).cases if c.split == "test"]
    assert [score.case_id for score in result.scores] == expected
    for score in result.scores:
        assert score.values["dice"] == {"ET": 1.0, "TC": 1.0, "WT": 1.0}
        assert score.values["hd95_mm"] == {"ET": 0.0, "TC": 0.0, "WT": 0.0}
    assert told == [(name, len(expected)) for name in expected]
    assert (result.round, result.tta, result.postprocess_et) == (2, True, 9)
    assert result.leakage == read_manifest(small_cache).leakage
    assert asked == [{"batch_size": 3, "patch": None, "tta": True, "postprocess_et": 9}] * len(
        expected
    )


def test_the_trained_and_the_untrained_network_are_not_the_same(small_cache, tiny_run):
    config = read_config(tiny_run)
    trained, round_number = trained_model(tiny_run, config)
    assert round_number == 2
    start = initial_model(config)
    name = "layers.0.weight"
    assert not torch.equal(trained.state_dict()[name], start.state_dict()[name])
    result = evaluate(tiny_run, small_cache, untrained=True, on_case=lambda *_: None)
    assert result.round == 0


def test_a_cache_without_test_cases_says_what_to_do(small_tree, tiny_run, tmp_path, small_options):
    options = Options(**{**small_options.model_dump(), "test_fraction": 0.0})
    plan = make_plan([small_tree], options)
    outcomes = [make_shard(s, tmp_path, plan.preprocessing, lambda _: None) for s in plan.shards]
    write_manifest(tmp_path, assemble_manifest(plan, outcomes))
    with pytest.raises(InputError, match="--test-fraction"):
        evaluate(tiny_run, tmp_path, on_case=lambda *_: None)
    with pytest.raises(InputError, match="another cache"):
        require_runs([tiny_run], tmp_path)


def test_an_unknown_convention_is_answered_with_those_that_there_are(small_cache, tiny_run):
    with pytest.raises(InputError, match="brats2020, nan-drop, lesionwise2023"):
        evaluate(tiny_run, small_cache, scoring=Scoring("dice"), on_case=lambda *_: None)


def test_all_runs_are_checked_before_the_first_is_scored(small_cache, tiny_run, tmp_path):
    require_runs([tiny_run], small_cache)
    with pytest.raises(InputError, match="named twice"):
        require_runs([tiny_run, tiny_run], small_cache)
    with pytest.raises(InputError, match="train fed"):
        require_runs([tiny_run, tmp_path], small_cache)


def test_a_run_that_cannot_be_written_is_found_before_the_first_is_scored(
    small_cache, tiny_run, monkeypatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("cache_schema.targets.TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"RUN .* cannot be written \(Read-only file system\)"):
        require_runs([tiny_run], small_cache)


def test_a_run_without_weights_is_found_before_the_first_is_scored(small_cache, tiny_run, tmp_path):
    begun = shutil.copytree(tiny_run, tmp_path / "begun")
    (begun / WEIGHTS_NAME).unlink()
    with pytest.raises(InputError, match=r"begun/model\.safetensors cannot be read .* first round"):
        require_runs([tiny_run, begun], small_cache)
    require_runs([tiny_run, begun], small_cache, untrained=True)
