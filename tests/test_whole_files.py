"""Whoever writes a file that lasts: if the disk refuses, it is one line, and what was there is there."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import cli
from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest, write_manifest
from cache_schema.preprocessing import record_preprocessing
from pipeline.mask import write_labels
from pipeline.page import write_pictures
from pipeline.raw_case import RawCase
from pipeline.volume import encode_nifti
from training.ablate import ROWS, Ablation, write_ablation
from training.checkpoint import save_resume, save_tensors, save_weights
from training.config import TrainConfig, write_config
from training.cost import Cost, write_cost
from training.export import FORMATS, Format, export_network
from training.fairness import ClientEvaluation, write_client_evaluation
from training.metrics import METRICS
from training.mlflow_board import MlflowBoard
from training.models.table import write_sizes
from training.provenance import write_preprocessing, write_provenance
from training.report.page import write_report
from training.score_files import write_document, write_evaluation, write_table
from training.scores import CaseScore, Evaluation


@pytest.fixture(scope="module")
def manifest(small_cache):
    return read_manifest(small_cache)


def a_mask(path):
    source = encode_nifti(np.ones((3, 4, 5), np.int16), np.eye(4))
    case = RawCase(np.zeros((1, 4, 3, 4), np.float16), np.array([1]), (3, 4, 5), source, ())
    write_labels(path / "mask.nii.gz", case, np.ones((1, 3, 4), np.uint8))


def an_evaluation(manifest):
    values = {metric: {"ET": 0.5, "TC": 0.5, "WT": 0.5} for metric in METRICS}
    scores = (CaseScore("a", "a", "brats2018", values),)
    return Evaluation(scores, manifest.leakage, "brats2020", 1, "digest")


def an_ablation(manifest):
    means = {"all": {"ET": 0.5, "TC": 0.5, "WT": 0.5, "mean": 0.5}}
    rows = {row.name: means for row in ROWS}
    return Ablation(TrainConfig(), rows, manifest.leakage, "digest")


def an_mlflow_id(path):
    board = MlflowBoard.__new__(MlflowBoard)
    board._client, board._create_experiment = _Client(), lambda: "0"
    board._begin(path)


class _Client:
    """As much of MLflow's as beginning a run takes."""

    def get_experiment_by_name(self, name):
        return None

    def create_run(self, number, run_name):
        return type("Run", (), {"info": type("Info", (), {"run_id": "7"})})


TENSORS = {"w": torch.zeros(3)}
WRITERS = {
    "manifest": write_manifest,
    "mask": lambda path, _: a_mask(path),
    "weights": lambda path, _: save_weights(path, TENSORS, round_number=1),
    "resume": lambda path, _: save_resume(path, {"model": TENSORS}, {"round": 1}),
    "tensors": lambda path, _: save_tensors(path / "kept.safetensors", TENSORS),
    "config": lambda path, _: write_config(path, TrainConfig()),
    "provenance": lambda path, manifest: write_provenance(path, manifest, device="cpu"),
    "preprocessing": lambda path, m: write_preprocessing(path, record_preprocessing(m)),
    "scores": lambda path, manifest: write_evaluation(path, an_evaluation(manifest)),
    "clients": lambda path, manifest: write_client_evaluation(
        path, ClientEvaluation(an_evaluation(manifest), (0,))
    ),
    "table": lambda path, _: write_table(path / "a.csv", ["a"], [["1"]]),
    "document": lambda path, _: write_document(path / "a.json", {"a": 1}),
    "ablation": lambda path, manifest: write_ablation(path, an_ablation(manifest)),
    "sizes": lambda path, _: write_sizes(path / "sizes.json", []),
    "cost": lambda path, _: write_cost(path, Cost("cpu", 1, 1.0, None)),
    "mlflow": lambda path, _: an_mlflow_id(path),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    name, step, manifest, tmp_path, monkeypatch
):
    WRITERS[name](tmp_path, manifest)
    written = contents(tmp_path)
    assert written
    older = dict.fromkeys(written, b"older")
    for file, content in older.items():
        (tmp_path / file).write_bytes(content)
    monkeypatch.setattr(step, fail)
    with pytest.raises(InputError) as caught:
        WRITERS[name](tmp_path, manifest)
    first = next(file for file in written if file in str(caught.value))
    assert f"{tmp_path / first} cannot be written (No space left on device); " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == older


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize(("option", "name"), [("--html", "a.html"), ("--png", "a.png")])
def test_pictures_of_a_cache_are_whole_or_as_before(
    option, name, step, small_cache, manifest, tmp_path, monkeypatch
):
    (tmp_path / name).write_bytes(b"older")
    monkeypatch.setattr("pipeline.page._page", lambda *_: b"page")
    monkeypatch.setattr("pipeline.page._slide", lambda *_: b"slide")
    monkeypatch.setattr(step, fail)
    with pytest.raises(InputError, match=rf"^{option} .*{name} cannot be written \(No space"):
        write_pictures(small_cache, manifest, **{option[2:]: tmp_path / name})
    assert contents(tmp_path) == {name: b"older"}


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_report_is_whole_or_as_before(step, small_cache, tmp_path, monkeypatch):
    (tmp_path / "a.html").write_bytes(b"older")
    monkeypatch.setattr("training.report.page._render", lambda *_: "page")
    monkeypatch.setattr(step, fail)
    with pytest.raises(InputError, match=r"^--out .*a\.html cannot be written \(No space"):
        write_report([], small_cache, tmp_path / "a.html", device="cpu")
    assert contents(tmp_path) == {"a.html": b"older"}


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_the_document_of_a_scan_is_whole_or_as_before(step, small_tree, tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    path.write_bytes(b"older")
    monkeypatch.setattr("pipeline.run.inspect_cases", lambda cases, *_, **__: [])
    monkeypatch.setattr("pipeline.scan.summarise", lambda *_: _Report())
    monkeypatch.setattr("pipeline.show.scan_tables", lambda _: ())
    monkeypatch.setattr(step, fail)
    command = ["scan", str(small_tree), "--json", str(path)]
    result = CliRunner().invoke(cli.prep, command)
    assert isinstance(result.exception, InputError)
    assert f"--json {path} cannot be written (No space left" in str(result.exception)
    assert contents(tmp_path) == {"scan.json": b"older"}
    monkeypatch.undo()


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_an_export_is_whole_or_as_before(step, tmp_path, monkeypatch):
    out = tmp_path / "model.pt2"
    out.write_bytes(b"older")
    written = Format(lambda path, *_: path.write_bytes(path.name.encode()), lambda path: path)
    monkeypatch.setitem(FORMATS, ".pt2", written)
    monkeypatch.setattr("training.export._trace", lambda *_: None)
    monkeypatch.setattr("training.export.largest_difference", lambda *_: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(InputError, match=r"model\.pt2 cannot be written \(No space.*--out"):
            export_network(torch.nn.Identity(), out, {})
    assert contents(tmp_path) == {"model.pt2": b"older"}
    export_network(torch.nn.Identity(), out, {})
    assert contents(tmp_path) == {"model.pt2": b"model.pt2"}


class _Report:
    """A report that says little."""

    def document(self):
        return json.loads("{}")
