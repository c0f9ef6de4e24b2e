"""Sixteen real patients, in one year and in three: who is who, and what the printed leak is worth."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ARCHIVE = "MICCAI_BraTS_2018_Data_Training"
YEARS = ("BraTS_2018_subject_ID", "BraTS_2019_subject_ID", "BraTS_2020_subject_ID")
PEOPLE = 16


def prep(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("prep"), *map(str, arguments), "--workers", "2"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def partition(root: Path, cache: Path, *options: object) -> dict[str, Any]:
    done = prep("partition", root, "--cache", cache, "--clients", 4, *options)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads((cache / "manifest.json").read_text())
    return document


@pytest.fixture(scope="module")
def persons(brats) -> dict[str, str]:
    """The 2018 name of each person, by their case ids of all years, from the true table of 2020."""
    table = brats / "metadata" / "2020" / "MICCAI_BraTS2020_TrainingData" / "name_mapping.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row[year]: row[YEARS[0]] for row in rows for year in YEARS if row[year] != "NA"}


@pytest.fixture(scope="module")
def years(brats, tmp_path_factory) -> Path:
    """Three archives, the images of the last stored as float32, with the true tables."""
    root = tmp_path_factory.mktemp("years") / "data"
    command = [sys.executable, brats / "alias_years.py", root, "--type", "float32"]
    subprocess.run(command, check=True, timeout=300)
    return root


def leaked(document: dict[str, Any], persons: dict[str, str]) -> int:
    """Count persons who are tested and trained on, by their true names alone."""
    seen: dict[str, set[str]] = {"train": set(), "test": set()}
    for case in document["cases"]:
        seen[case["split"]].add(persons[case["case_id"]])
    return len(seen["train"] & seen["test"])


def test_sixteen_cases_of_one_year_are_sixteen_sound_patients(brats, tmp_path):
    done = prep("scan", brats / ARCHIVE, "--json", tmp_path / "scan.json")
    assert done.returncode == 0
    report = json.loads((tmp_path / "scan.json").read_text())
    assert report["patients"] == PEOPLE
    assert (report["faults"], report["absent"], report["overlooked"]) == ({}, {}, {})
    document = partition(brats / ARCHIVE, tmp_path / "cache")
    assert len({case["patient_id"] for case in document["cases"]}) == PEOPLE
    assert document["quarantined"] == []


def test_no_test_patient_is_trained_on_in_any_year(years, persons, tmp_path):
    document = partition(years, tmp_path / "cache", "--test-fraction", 0.2)
    assert document["leakage"]["also_in_training"] == leaked(document, persons) == 0
    assert document["leakage"]["test_patients"] == 3
    assert len({case["patient_id"] for case in document["cases"]}) == PEOPLE
    assert all(cohort["patients"] == PEOPLE for cohort in document["cohorts"].values())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_protocol_leaks_just_as_many_as_it_says(years, persons, tmp_path, seed):
    options = ("--protocol", "paper", "--seed", seed, "--test-fraction", 0.2)
    document = partition(years, tmp_path / "cache", *options)
    told = document["leakage"]["also_in_training"]
    assert told == leaked(document, persons) > 0


def test_nor_without_the_mappings(years, persons, tmp_path):
    root = tmp_path / "data"
    for archive in years.iterdir():
        (root / archive.name).mkdir(parents=True)
        for entry in archive.iterdir():
            if not entry.name.startswith("name_mapping"):
                (root / archive.name / entry.name).symlink_to(entry)
    document = partition(root, tmp_path / "cache", "--test-fraction", 0.2)
    assert not list(root.rglob("name_mapping*"))
    assert document["leakage"]["also_in_training"] == leaked(document, persons) == 0
    assert len({case["patient_id"] for case in document["cases"]}) == PEOPLE
