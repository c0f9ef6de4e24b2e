"""A run with scores, and runs made up for tables and charts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cache_schema.manifest import Manifest, read_manifest
from cache_schema.vocabulary import REGIONS
from training.evaluate import evaluate
from training.fairness import evaluate_clients, write_client_evaluation
from training.report.record import RunRecord, Scored, read_runs
from training.score_files import write_evaluation
from training.scores import CaseScore, Evaluation, Scoring


@pytest.fixture(scope="session")
def manifest(small_cache) -> Manifest:
    return read_manifest(small_cache)


@pytest.fixture(scope="session")
def scored_run(tiny_run, small_cache, tmp_path_factory) -> Path:
    """The tiny run with scores of every kind; never write to it."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("scored") / "scored"))
    for untrained in (True, False):
        result = evaluate(run, small_cache, untrained=untrained, on_case=lambda *_: None)
        write_evaluation(run, result)
    fairness = evaluate_clients(run, small_cache, scoring=Scoring(), on_case=lambda *_: None)
    write_client_evaluation(run, fairness)
    return run


@pytest.fixture(scope="session")
def scored_record(scored_run, manifest) -> RunRecord:
    (record,) = read_runs([scored_run], manifest)
    return record


@pytest.fixture
def scored_as(scored_record, manifest):
    """Makes a run of which the cases scored so: (patient, cohort, Dice of ET, TC, WT, HD95 of all)."""

    def make(name, *cases, leakage=None, **rules) -> RunRecord:
        scores = tuple(
            CaseScore(
                f"{patient}-{cohort}",
                patient,
                cohort,
                {
                    "dice": dict(zip(REGIONS, dice, strict=True)),
                    "hd95_mm": dict.fromkeys(REGIONS, hd95_mm),
                    "sensitivity": dict.fromkeys(REGIONS, 0.5),
                    "specificity": dict.fromkeys(REGIONS, 1.0),
                },
            )
            for patient, cohort, dice, hd95_mm in cases
        )
        settings = {"convention": "brats2020", "round": 2, "manifest": "m"} | rules
        evaluation = Evaluation(scores, leakage or manifest.leakage, **settings)
        scored = Scored(evaluation, evaluation.summary())
        return replace(scored_record, name=name, scored=scored, untrained=None)

    return make
