"""The console commands from outside: exit codes, and one clear line on stderr when it fails."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
import typer
from typer.testing import CliRunner

import cli
from training.config import make_config, write_config

ROOT = Path(__file__).parents[1]

SMALL = ("--geometry", "any", "--workers", "1")
UNTRAINED = ("--weights", "none", "--rounds", "1", "--local-epochs", "1")


def run(command: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `prep` in a fresh interpreter, and `train` in this one, which has torch already."""
    if command == "train":
        return run_here(cli.run_train, *arguments, cwd=cwd)
    return run_fresh(command, *arguments, cwd=cwd)


def run_here(
    command: Callable[[], None], *arguments: object, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run a console script's function."""
    words = [command.__name__, *map(str, arguments)]
    code, out, err = 0, StringIO(), StringIO()
    with (
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", words),
        mock.patch.object(cli.console, "_width", 200),
    ):
        try:
            command()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(words, code or 0, out.getvalue(), err.getvalue())


def run_fresh(command: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `prep` or `train` in a fresh interpreter, as their console scripts do."""
    return subprocess.run(
        [sys.executable, "-c", f"import cli; cli.run_{command}()", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def assert_fails(result: subprocess.CompletedProcess[str], *mentions: object) -> None:
    """Hold a failure against the contract: exit code 1, one line that names what is wrong."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for mention in mentions:
        assert str(mention) in result.stderr


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def case_file(archives: Path, case_id: str, modality: str) -> Path:
    (path,) = archives.rglob(f"{case_id}_{modality}.nii.gz")
    return path


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Make the archives of four synthetic patients."""
    folder = tmp_path_factory.mktemp("phantom")
    size = ("--patients", 4, "--shape", 24, 20, 16)
    result = run("prep", "phantom", "data", *size, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "data"


@pytest.fixture(scope="module")
def cache(archives, tmp_path_factory):
    """Make a finished cache of two clients, to be read only."""
    folder = tmp_path_factory.mktemp("prepared")
    result = run("prep", "partition", archives, "--clients", 2, *SMALL, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder / "cache"


@pytest.fixture
def archives_copy(archives, tmp_path):
    """Make archives that a test may damage."""
    return Path(shutil.copytree(archives, tmp_path / "damaged"))


@pytest.fixture
def cache_copy(cache, tmp_path):
    """Make a cache that a test may damage."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("command", ["prep", "train"])
def test_help_is_no_failure(command, tmp_path):
    result = run_fresh(command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--debug" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("scan", "--nonsense"), ("partition", "--clients", "many"), ("nonsense",)]
)
def test_wrong_usage_exits_with_2(arguments, tmp_path):
    assert run("prep", *arguments, cwd=tmp_path).returncode == 2


def test_a_folder_without_cases_is_named(tmp_path):
    (tmp_path / "holiday-pictures").mkdir()
    result = run("prep", "partition", "holiday-pictures", cwd=tmp_path)
    assert_fails(result, "holiday-pictures", "no BraTS case")
    assert not (tmp_path / "cache").exists()


def test_a_root_that_does_not_exist_is_named(tmp_path):
    assert_fails(run("prep", "scan", "nowhere", cwd=tmp_path), "nowhere")


def test_the_default_root_is_data(tmp_path):
    assert_fails(run("prep", "partition", cwd=tmp_path), "data is not a folder")


UNWRITABLE = [
    (cli.run_prep, ("phantom", "notes/data"), "OUT"),
    (cli.run_prep, ("scan", "nowhere", "--json", "notes/scan.json"), "--json"),
    (cli.run_prep, ("partition", "nowhere", "--cache", "notes/cache"), "--cache"),
    (cli.run_train, ("export", "nowhere", "--out", "notes/model.pt2"), "--out"),
    (cli.run_train, ("report", "nowhere", "--out", "notes/report.html"), "--out"),
    (cli.run_train, ("models", "--model", "nonsense", "--json", "notes/sizes.json"), "--json"),
    (cli.run_train, ("ablate", "--cache", "nowhere", "--run", "notes/runs"), "--run"),
    (
        cli.run_train,
        ("compare", "nowhere", "--models", "unetmm", "--steps", "1", "--out", "notes/runs"),
        "--out",
    ),
]


@pytest.mark.parametrize(("command", "arguments", "option"), UNWRITABLE)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    command, arguments, option, tmp_path
):
    (tmp_path / "notes").write_text("mine")
    result = run_here(command, *arguments, cwd=tmp_path)
    assert_fails(result, f"error: {option} notes/", "cannot be written (Not a directory)")
    assert files(tmp_path) == {"notes"}


@pytest.mark.parametrize("kind", ["html", "png"])
def test_pictures_that_cannot_be_written_are_refused_before_a_shard_is_read(
    kind, cache_copy, tmp_path
):
    shutil.rmtree(cache_copy / "clients")
    (tmp_path / f"folder.{kind}").mkdir()
    result = run_here(cli.run_prep, "show", "cache", f"--{kind}", f"folder.{kind}", cwd=tmp_path)
    assert_fails(result, f"--{kind} folder.{kind} cannot be written (Is a directory)")


def test_a_report_may_go_into_a_new_folder(archives, tmp_path):
    result = run_here(
        cli.run_prep, "scan", archives, *SMALL, "--json", "new/scan.json", cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "new" / "scan.json").read_text())["patients"] == 4


NOBODY = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""
"""Every process believes that its user has no name, as in `docker run --user 12345`."""


def test_a_user_without_name_and_home_prepares_a_cache(archives, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOBODY)
    (tmp_path / "work").mkdir()
    result = subprocess.run(
        [
            *(sys.executable, "-c", "import cli; cli.run_prep()"),
            *("partition", archives, "--clients", "2", *SMALL),
        ],
        cwd=tmp_path / "work",
        env={
            "PATH": os.defpath,
            "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}",
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert files(tmp_path / "work") >= {"cache", "cache/manifest.json"}
    assert not (tmp_path / "work" / "~").exists()


def test_another_partition_needs_replace(archives, cache_copy, tmp_path):
    before = (cache_copy / "manifest.json").read_bytes()
    command = ("partition", archives, "--clients", 2, *SMALL, "--alpha", 3.0)
    result = run("prep", *command, cwd=tmp_path)
    assert_fails(
        result, "cache was made of something else", "--alpha 3.0 instead of 1.0", "--replace"
    )
    assert (cache_copy / "manifest.json").read_bytes() == before
    result = run("prep", *command, "--dry-run", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert run("prep", *command, "--replace", cwd=tmp_path).returncode == 0
    shown = run("prep", "show", cache_copy, cwd=tmp_path).stdout
    assert "made with --clients 2 --alpha 3.0 --seed 0 " in shown


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_folder_without_manifest_is_no_cache(command, tmp_path):
    result = run("prep", command, tmp_path, cwd=tmp_path)
    assert_fails(result, tmp_path, "manifest.json", "prep partition")


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_manifest_of_a_newer_version_is_refused_by_its_number(command, cache_copy, tmp_path):
    manifest = cache_copy / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 7}))
    assert_fails(run("prep", command, cache_copy, cwd=tmp_path), manifest, "version 7")


def test_a_finished_cache_agrees_with_its_manifest(cache, tmp_path):
    result = run("prep", "verify", "--deep", cache, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    result = run("prep", "show", cache, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "brats2019" in result.stdout


@pytest.mark.parametrize("depth", [(), ("--deep",)])
def test_a_truncated_shard_is_named(depth, cache_copy, tmp_path):
    truncate(cache_copy / "clients/client-01/shard-000.h5")
    result = run("prep", "verify", *depth, cache_copy, cwd=tmp_path)
    assert result.returncode == 1
    assert "clients/client-01/shard-000.h5" in result.stderr
    assert "clients/client-00/shard-000.h5" not in result.stderr
    assert "Traceback" not in result.stderr


def test_more_clients_than_patients_are_refused_with_both_numbers(archives, tmp_path):
    result = run("prep", "partition", archives, "--clients", 9, *SMALL, cwd=tmp_path)
    assert_fails(result, "--clients 9", "4 training patients")
    assert files(tmp_path) == set()


def test_debug_shows_where_it_failed(tmp_path):
    result = run("prep", "show", "nowhere", "--debug", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_absent_modalities_are_refused_naming_the_case(archives_copy, tmp_path):
    case_file(archives_copy, "BraTS20_Training_002", "t1ce").unlink()
    result = run("prep", "partition", archives_copy, "--clients", 2, *SMALL, cwd=tmp_path)
    assert_fails(result, "BraTS20_Training_002 (t1ce)", "--missing zero")
    assert not (tmp_path / "cache").exists()


def test_a_corrupt_case_is_quarantined_and_the_rest_go_on(archives_copy, tmp_path):
    truncate(case_file(archives_copy, "BraTS20_Training_002", "t2"))
    command = ("partition", archives_copy, "--clients", 2, *SMALL)
    result = run("prep", *command, cwd=tmp_path)
    assert result.returncode == 3, result.stdout + result.stderr
    assert result.stderr.startswith("quarantined BraTS20_Training_002: t2 ")
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    assert [entry["case_id"] for entry in manifest["quarantined"]] == ["BraTS20_Training_002"]
    assert run("prep", *command, "--allow-quarantined", cwd=tmp_path).returncode == 0


def test_archives_of_another_geometry_are_refused_by_default(archives, tmp_path):
    result = run("prep", "partition", archives, "--clients", 2, "--workers", 1, cwd=tmp_path)
    assert_fails(result, "every case was quarantined", "--geometry any")
    assert not (tmp_path / "cache/manifest.json").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(archives, tmp_path):
    command = ("partition", archives, "--clients", 2, *SMALL)
    result = run("prep", *command, "--dry-run", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "clients/client-01" in result.stdout
    assert files(tmp_path) == set()


def test_a_dry_run_says_who_would_be_quarantined(archives, tmp_path):
    shutil.copytree(archives, tmp_path / "data")
    segmentation = min((tmp_path / "data").rglob("*_seg.nii.gz"))
    segmentation.unlink()
    result = run("prep", "partition", "--clients", 2, *SMALL, "--dry-run", cwd=tmp_path)
    case_id = segmentation.parent.name
    assert result.returncode == 0
    assert result.stderr == f"would be quarantined: {case_id}: no segmentation file\n"


def test_a_scan_writes_its_report_and_nothing_else(archives, tmp_path):
    result = run("prep", "scan", archives, *SMALL, "--json", "report.json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert files(tmp_path) == {"report.json"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["patients"] == 4
    assert report["faults"] == {}
    assert report["overlaps"]["brats2019+brats2020"] == 4


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [("--model", "alexnet", "unetmm"), ("--strategy", "fedmagic", "fedavg")],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(
    option, value, known, cache, tmp_path
):
    result = run("train", "fed", "--cache", cache, *UNTRAINED, option, value, cwd=tmp_path)
    assert_fails(result, option, value, known)


@pytest.mark.parametrize("crop", ["48", "0"])
def test_a_crop_must_be_a_multiple_of_32(crop, cache, tmp_path):
    result = run("train", "fed", "--cache", cache, *UNTRAINED, "--crop", crop, cwd=tmp_path)
    assert_fails(result, "--crop")


def test_training_needs_a_finished_cache(tmp_path):
    result = run_fresh("train", "fed", "--cache", "nowhere", *UNTRAINED, cwd=tmp_path)
    assert_fails(result, "nowhere", "manifest.json", "prep partition")


def test_training_names_a_truncated_shard(cache_copy, tmp_path):
    truncate(cache_copy / "clients/client-01/shard-000.h5")
    result = run("train", "fed", "--cache", cache_copy, *UNTRAINED, "--crop", 32, cwd=tmp_path)
    assert_fails(result, "clients/client-01/shard-000.h5", "prep verify")


def test_only_a_run_can_be_evaluated(cache, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("train", "eval", "empty", "--cache", cache, cwd=tmp_path)
    assert_fails(result, "empty", "train fed")


def test_the_size_of_a_network_is_shown_beside_the_papers_and_written(tmp_path):
    command = ("models", "--model", "unetmm", "--json", "sizes.json")
    result = run("train", *command, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    assert any({"unetmm", "20.5", "69.01"} <= set(row) for row in rows)
    assert json.loads((tmp_path / "sizes.json").read_text())[0]["network"] == "unetmm"


def test_the_size_of_an_unknown_network_is_refused(tmp_path):
    result = run("train", "models", "--model", "alexnet", cwd=tmp_path)
    assert_fails(result, "--model alexnet", "unetmm")


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--model", "transbts", "--model-option", "widht=3"), ("widht=3", "width", "size=tiny")),
        (("--model", "transbts", "--crop", 100), ("--crop",)),
        (("--model", "transbts", "--weights", "imagenet"), ("--weights imagenet", "ResNet18")),
        (("--model", "transbts", "--slices", "tumour"), ("--slices tumour", "--tumour-share")),
        (("--model", "swinunetr", "--crop", 32), ("--crop", "swinunetr")),
        (("--depth", 64, "--weights", "none"), ("--depth 64", "unetmm")),
    ],
)
def test_a_network_says_what_it_cannot_be_asked(options, mentions, cache, tmp_path):
    result = run("train", "central", "--cache", cache, *options, cwd=tmp_path)
    assert_fails(result, *mentions)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("budget", [(), ("--steps", 5, "--minutes", 5)])
def test_a_comparison_needs_one_budget(budget, cache, tmp_path):
    result = run("train", "compare", cache, "--models", "unetmm", *budget, cwd=tmp_path)
    assert_fails(result, "--steps", "--minutes")


def test_networks_are_compared_in_the_papers_tables_and_the_same_command_goes_on(
    small_cache, tmp_path
):
    command = ("compare", small_cache, "--models", "unetrpp:size=tiny,unetrpp:size=tiny+tta")
    options = ("--steps", 2, "--crop", 32, "--device", "cpu", "--loader-workers", 0)
    first = run("train", *command, *options, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = run("train", *command, *options, cwd=tmp_path)
    assert "unetrpp-size=tiny+tta: finished already" in again.stdout
    tables = again.stdout[again.stdout.index("as in the paper") :]
    assert tables in first.stdout
    assert "UNETR++" in tables
    document = json.loads((tmp_path / "runs/compare/comparison.json").read_text())
    assert [row["steps"] for row in document["rows"]] == [2, 2]


def test_a_cache_is_exported_for_nnunet(cache, tmp_path):
    out = tmp_path / "Dataset501_Phantom"
    result = run("prep", "export", "nnunet", cache, "--out", out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    cases = json.loads((cache / "manifest.json").read_text())["cases"]
    training = sum(case["split"] == "train" for case in cases)
    assert f"{training} training and {len(cases) - training} test cases" in result.stdout
    assert len(list((out / "imagesTr").iterdir())) == 4 * training


def test_an_ablation_needs_a_finished_cache(tmp_path):
    result = run("train", "ablate", "--cache", "nowhere", *UNTRAINED, cwd=tmp_path)
    assert_fails(result, "nowhere", "manifest.json", "prep partition")


@pytest.mark.parametrize("kind", ["fed", "central"])
def test_only_a_run_can_be_gone_on_with(kind, cache, tmp_path):
    (tmp_path / "empty").mkdir()
    command = ("train", kind, "--cache", cache, "--run", "empty", "--resume")
    assert_fails(run(*command, cwd=tmp_path), "empty", "is not a run")


def test_a_resumed_run_keeps_its_settings_and_refuses_others_by_option(cache, tmp_path):
    (tmp_path / "run").mkdir()
    config = make_config(weights="none", crop=64, slices="tumour", rounds=2, device="cpu")
    write_config(tmp_path / "run", config)
    command = ("train", "fed", "--cache", cache, "--run", "run", "--resume")
    result = run(*command, "--crop", 64, "--rounds", 9, cwd=tmp_path)
    assert_fails(result, "run was begun with other settings (--rounds 9 instead of 2)")


def test_a_run_is_gone_on_with_by_its_own_command_and_its_own_epochs(cache, tmp_path):
    settings = {"weights": "none", "crop": 64, "rounds": 2, "device": "cpu"}
    for name, strategy in (("federated", "fedavg"), ("central", "central")):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, make_config(strategy=strategy, **settings))
    command = ("--cache", cache, "--resume", "--run")
    result = run("train", "central", *command, "federated", cwd=tmp_path)
    assert_fails(result, "federated is a run of `train fed`")
    result = run("train", "fed", *command, "central", cwd=tmp_path)
    assert_fails(result, "central is a run of `train central`")
    result = run("train", "central", *command, "central", "--epochs", 9, cwd=tmp_path)
    assert_fails(result, "central was begun with other settings (--epochs 9 instead of 2)")


def test_a_number_of_epochs_that_cannot_be_is_named(cache, tmp_path):
    result = run("train", "central", "--cache", cache, "--epochs", 0, cwd=tmp_path)
    assert_fails(result, "--epochs: ")


@pytest.mark.parametrize(
    ("options", "mention"),
    [
        (("--local-steps", 5, "--local-epochs", 2), "--local-steps"),
        (("--local-steps", 5, "--epoch-schedule", "adaptive"), "--epoch-schedule"),
        (("--strategy-option", "mu"), "--strategy-option mu: write it as NAME=VALUE"),
    ],
)
def test_settings_of_a_round_that_exclude_each_other_are_named(options, mention, tmp_path):
    assert_fails(run("train", "fed", *options, cwd=tmp_path), mention)


def test_a_target_dice_is_told_also_of_a_run_that_is_finished(small_cache, tmp_path):
    options = ("--cache", small_cache, "--run", "run", "--slices", "tumour", "--crop", 32)
    result = run("train", "fed", *options, *UNTRAINED, "--target-dice", 0.001, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "round 1 first reached a mean training Dice of 0.001" in result.stdout
    again = ("--cache", small_cache, "--run", "run", "--resume", "--target-dice", 0.999)
    result = run("train", "fed", *again, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    targets = [json.loads(line) for line in lines if '"target"' in line]
    assert [(each["dice"], each["round"]) for each in targets] == [(0.001, 1), (0.999, None)]


@pytest.fixture(scope="module")
def lone_run(cache, tmp_path_factory):
    """Make a run whose cache is gone."""
    folder = tmp_path_factory.mktemp("lone")
    shutil.copytree(cache, folder / "cache")
    result = run("train", "fed", *UNTRAINED, "--crop", 32, "--batch-size", 64, cwd=folder)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(folder / "cache")
    return folder / "runs/fed"


def test_a_case_is_segmented_from_its_folder_and_from_its_files_after_the_cache_is_gone(
    lone_run, archives, tmp_path
):
    folder = case_file(archives, "BraTS20_Training_001", "t1").parent
    result = run("train", "predict", lone_run, folder, "--out", "a.nii.gz", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "written: a.nii.gz (labels 0, 1, 2, 4)" in result.stdout
    one_by_one = []
    for name in ("t1", "t1ce", "t2", "flair"):
        one_by_one += [f"--{name}", case_file(archives, folder.name, name)]
    options = ("--out", "b.nii.gz", "--probabilities")
    result = run("train", "predict", lone_run, *one_by_one, *options, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "b_probabilities.nii.gz (probabilities of NEC, ED, ET)" in result.stdout
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert files(tmp_path) == {f"{name}.nii.gz" for name in ("a", "b", "b_probabilities")}


def test_a_folder_with_a_damaged_case_gives_the_other_masks_and_exits_with_1(
    lone_run, archives_copy, tmp_path
):
    truncate(case_file(archives_copy, "BraTS20_Training_002", "flair"))
    result = run("train", "predict", lone_run, archives_copy, "--out", "masks", cwd=tmp_path)
    assert result.returncode == 1
    left_out, error = result.stderr.splitlines()
    assert left_out.startswith("BraTS20_Training_002 is left out: flair is not a readable NIfTI")
    assert error.startswith("error: 1 of ")
    masks = {path.name for path in (tmp_path / "masks").iterdir()}
    assert "BraTS20_Training_001.nii.gz" in masks
    assert "BraTS20_Training_002.nii.gz" not in masks
    assert f"of {len(masks) + 1} cases" in error


def test_a_single_case_that_cannot_be_segmented_is_one_line(lone_run, archives_copy, tmp_path):
    file = case_file(archives_copy, "BraTS20_Training_002", "t2")
    truncate(file)
    arguments = (lone_run, file.parent, "--out", "mask.nii.gz")
    result = run("train", "predict", *arguments, cwd=tmp_path)
    assert_fails(result, "BraTS20_Training_002: t2 is not a readable NIfTI")


def test_a_run_is_exported_and_compared(lone_run, tmp_path):
    # Tracing calls with symbols for numbers, which the types checked in this interpreter refuse.
    result = run_fresh("train", "export", lone_run, "--out", "model.pt2", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "probabilities differ by at most" in result.stdout
    assert files(tmp_path) == {"model.pt2"}


GOES_ON = "the same command goes on from what is finished"
BEGINS_ANEW = "there is nothing to go on from: the same command begins anew"
INTERRUPTIONS = {
    ("prep", "partition", "data"): GOES_ON,
    (
        "prep",
        "export",
        "nnunet",
        "cache",
        "--out",
        "Dataset501_B",
    ): GOES_ON,
    ("prep", "phantom", "data"): GOES_ON,
    ("prep", "scan", "data"): BEGINS_ANEW,
    ("prep", "verify", "cache"): BEGINS_ANEW,
    ("train", "eval", "run"): BEGINS_ANEW,
    (
        "train",
        "predict",
        "run",
        "case",
    ): BEGINS_ANEW,
    ("train", "ablate", "--run", "runs"): GOES_ON,
    (
        "train",
        "compare",
        "cache",
        "--models",
        "unet3d",
        "--steps",
        "4",
    ): GOES_ON,
    (
        "train",
        "fed",
        "--run",
        "new",
    ): BEGINS_ANEW,
    (
        "train",
        "fed",
        "--run",
        "a run",
    ): "`train fed --run 'a run' --resume` goes on",
    (
        "train",
        "fed",
        "--resume",
        "--run",
        "a run",
    ): "`train fed --run 'a run' --resume` goes on",
    (
        "train",
        "central",
        "--run",
        "central",
    ): "`train central --run central --resume` goes on",
}
WORK = (
    "pipeline.plan.make_plan",
    "pipeline.run.run_plan",
    "pipeline.nnunet.export_nnunet",
    "pipeline.phantom.archives.write_phantom",
    "pipeline.cohorts.discover",
    "cache_schema.verify.verify_cache",
    "cache_schema.admission.require_whole_splits",
    "training.evaluate.require_runs",
    "pipeline.segment.plan_requests",
    "training.ablate.ablate",
    "training.compare.compare",
    "training.federated.engine.run_federation",
    "training.central.run_central",
)


@pytest.mark.parametrize(("words", "told"), INTERRUPTIONS.items(), ids=" ".join)
def test_ctrl_c_tells_the_command_that_really_goes_on(words, told, tmp_path, monkeypatch):
    for run, strategy in (("a run", "fedavg"), ("central", "central")):
        (tmp_path / run).mkdir()
        write_config(tmp_path / run, make_config(weights="none", strategy=strategy))
    for place in set(WORK) - {"pipeline.plan.make_plan"}:
        monkeypatch.setattr(place, mock.Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr("pipeline.plan.make_plan", mock.Mock(return_value=mock.Mock(overlooked=())))
    program = {"prep": cli.run_prep, "train": cli.run_train}[words[0]]
    result = run_here(program, *words[1:], "--debug", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, f"interrupted; {told}\n")


def test_the_command_that_ctrl_c_tells_finishes_the_run(small_cache, tmp_path, monkeypatch):
    """Nothing of the settings has to be typed again, and what stands in the folder is no obstacle."""
    network = ("--model", "unet3d", "--model-option", "size=tiny", "--crop", 32, "--depth", 16)
    length = ("--rounds", 2, "--local-steps", 1, "--loader-workers", 0, "--device", "cpu")
    words = ("fed", "--cache", small_cache, "--run", "a run", *network, *length)
    with monkeypatch.context() as patch:
        patch.setattr(cli._TrainingBar, "step", mock.Mock(side_effect=KeyboardInterrupt))
        result = run_here(cli.run_train, *words, cwd=tmp_path)
    assert result.returncode == 1
    told = result.stderr.split("`")[1]
    result = run_here(cli.run_train, *shlex.split(told)[1:], cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "a run" / "model.safetensors").exists()


def commands_of(command, path=()):
    """Walk through all commands of a program."""
    for name, part in getattr(command, "commands", {}).items():
        yield from commands_of(part, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


HELP = [
    pytest.param(app, path, command, id=" ".join((app.info.name, *path)))
    for app in (cli.prep, cli.train)
    for path, command in commands_of(typer.main.get_command(app))
]


@pytest.mark.parametrize(("app", "path", "command"), HELP)
def test_help_shows_every_word_that_is_written_for_it(app, path, command):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "2000"})
    shown = " ".join(result.output.split())
    written = [command.help.split("\n\n")[0]]
    for parameter in command.params:
        shows = getattr(parameter, "show_default", None)
        texts = (parameter.help, parameter.metavar, shows if isinstance(shows, str) else None)
        written += [" ".join(text.split()) for text in texts if text]
    assert [text for text in written if text not in shown] == []


@pytest.mark.parametrize("path", ["fed", "central", "compare"])
def test_help_shows_defaults_that_depend_on_the_network(path):
    result = CliRunner().invoke(cli.train, [path, "--help"], env={"COLUMNS": "2000"})
    for default in ("imagenet; none in 3D", "8; 2 in 3D", "224; 128 in 3D"):
        assert f"[default: ({default})]" in result.output
