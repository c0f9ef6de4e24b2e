"""The scripts in examples/ do what docs/reuse.md says, by the commands that are printed there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cache_schema.manifest import CaseRecord, read_manifest
from pipeline.nnunet import export_nnunet
from training.runlog import read_rounds

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "reuse.md").read_text("utf-8")
EXAMPLES = {path.stem: path.read_text("utf-8") for path in (ROOT / "examples").glob("*.py")}
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
COMMANDS = {
    Path(line.split()[1]).stem: line
    for line in re.findall(r"^    (python examples/.*)$", DOCUMENT, re.MULTILINE)
}
NUMBER = r"(\d+\.\d+)"
NO_LEAK = "protocol patient: 0 of 1 test patients were also trained on"


def run(name: str, cache: Path, folder: Path) -> str:
    """Run an example in a folder by its command in the document, with another cache and Python."""
    _, script, *arguments = shlex.split(COMMANDS[name])
    arguments = [str(cache) if word == "cache" else word for word in arguments]
    result = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(pattern: str, text: str) -> list[float]:
    (found,) = re.findall(pattern, text)
    return [float(number) for number in found]


def dice_by_case(output: str) -> dict[str, list[float]]:
    lines = re.findall(rf"^(\S+): Dice ET {NUMBER} TC {NUMBER} WT {NUMBER}$", output, re.MULTILINE)
    return {case: [float(number) for number in values] for case, *values in lines}


def voxels_of(case: CaseRecord) -> tuple[int, int, int]:
    return case.label_voxels.NEC, case.label_voxels.ED, case.label_voxels.ET


def cases_of(cache: Path, split: str) -> dict[str, CaseRecord]:
    return {case.case_id: case for case in read_manifest(cache).cases if case.split == split}


def test_every_example_has_a_piece_of_code_in_the_document():
    assert [n for n, text in EXAMPLES.items() if not any(block in text for block in BLOCKS)] == []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_code_in_the_document_is_part_of_an_example(block):
    assert any(block in text for text in EXAMPLES.values())


def test_every_example_has_a_command_in_the_document():
    assert COMMANDS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize(("name", "share"), [("plain_pytorch", 0.5), ("patches", 0.8)])
def test_a_network_in_plain_pytorch_learns(name, share, small_cache, tmp_path):
    output = run(name, small_cache, tmp_path)
    first, last = numbers(rf"loss of the first steps {NUMBER}, of the last {NUMBER}", output)
    assert 0 < last < share * first


def test_a_network_of_monai_finds_the_tumours_of_the_test_set(small_cache, tmp_path):
    output = run("monai_network", small_cache, tmp_path)
    dice = dice_by_case(output)
    assert dice.keys() == cases_of(small_cache, "test").keys()
    assert all(whole > 0.2 for _, _, whole in dice.values())  # untrained it has 0.01
    assert NO_LEAK in output


def test_a_lightning_module_does_better_on_a_client_that_it_was_not_trained_on(
    small_cache, tmp_path
):
    output = run("lightning_module", small_cache, tmp_path)
    before, after = numbers(rf"validation loss {NUMBER} before, {NUMBER} after", output)
    assert 0 < after < 0.7 * before
    assert list(tmp_path.iterdir()) == []


def test_h5py_alone_finds_the_training_cases_and_label_volumes_of_the_manifest(
    small_cache, tmp_path
):
    output = run("plain_h5py", small_cache, tmp_path)
    pattern = r"(\S+): \((\d+), (\d+), (\d+)\), (\d+) slices, NEC (\d+) ED (\d+) ET (\d+), together"
    found = {case: tuple(map(int, rest)) for case, *rest in re.findall(pattern, output)}
    assert found == {
        case_id: (24, 20, 17, case.num_slices, *voxels_of(case))
        for case_id, case in cases_of(small_cache, "train").items()
    }


def test_networks_of_ones_own_are_trained_scored_and_reported(small_cache, tmp_path):
    output = run("own_model", small_cache, tmp_path)
    assert " ".join(output.split()).count(NO_LEAK) == 2  # below each table
    for name, clients in (("own2d", [0, 1]), ("own3d", [-1])):
        folder = tmp_path / "runs" / "own" / name
        rounds = read_rounds(folder)
        assert [part.client for part in rounds[0].clients] == clients
        assert rounds[-1].loss < 0.7 * rounds[0].loss
        document = json.loads((folder / "evaluation.json").read_text("utf-8"))
        assert document["summary"]["all"]["dice"]["WT"]["mean"] > 0.2
    page = (tmp_path / "runs" / "own" / "report.html").read_text("utf-8")
    assert "own2d" in page
    assert "own3d" in page


def test_the_command_train_knows_a_network_of_ones_own(small_cache, tmp_path):
    output = run("own_train", small_cache, tmp_path)
    assert "is finished" in output
    folder = tmp_path / "runs" / "own2d"
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["model"], config["model_options"]) == ("own2d", {"width": "8"})
    first, last = read_rounds(folder)
    assert last.loss < 0.95 * first.loss


def test_what_nnunet_predicts_is_scored_with_its_label_3_as_enhancing_tumour(small_cache, tmp_path):
    export_nnunet(small_cache, tmp_path / "Dataset501_BraTS")
    (tmp_path / "predictions").mkdir()
    for path in (tmp_path / "Dataset501_BraTS" / "labelsTs").iterdir():
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj)
        labels = np.where(labels == 1, 0, labels)  # a prediction that misses all necrosis
        nibabel.save(
            nibabel.Nifti1Image(labels, image.affine), tmp_path / "predictions" / path.name
        )
    output = run("nnunet_scores", small_cache, tmp_path)
    expected = {}
    for case_id, case in cases_of(small_cache, "test").items():
        nec, ed, et = voxels_of(case)
        core, whole = 2 * et / (2 * et + nec), 2 * (ed + et) / (2 * (ed + et) + nec)
        expected[case_id] = pytest.approx([1.0, core, whole], abs=5e-4)
    assert dice_by_case(output) == expected
    assert NO_LEAK in output
