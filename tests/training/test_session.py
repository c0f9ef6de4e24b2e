"""The folder of a run whose clients train at their own places."""

import json
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cache_schema.errors import InputError
from cache_schema.files import replacing
from cache_schema.manifest import digest, read_manifest
from cache_schema.preprocessing import PreprocessingRecord, Source
from cache_schema.vocabulary import MODALITIES
from tests.training.models.test_smallest_batch import Deep
from training.checkpoint import load_resume, load_weights, save_resume
from training.config import CENTRAL, read_config
from training.data import SliceDataset
from training.federated.engine import run_federation
from training.models.registry import MODELS, Network
from training.models.trained import trained_model
from training.provenance import (
    PREPROCESSING_NAME,
    read_preprocessing,
    read_provenance,
    require_same_cache,
)
from training.session import open_remote_run, open_session

PREPROCESSING = PreprocessingRecord(
    normalize="zscore",
    bias_correct=False,
    geometry="any",
    modalities=MODALITIES,
    label_convention="brats2018-2020",
    sources=(Source(plane=(24, 20), fingerprint="abc"),),
)


def remote_run(run, config, sites, *, resume=False):
    return open_remote_run(
        config, run, name="a name", sites=sites, preprocessing=PREPROCESSING, resume=resume
    )


def begin(run, config, sites, *, resume=False):
    with remote_run(run, config, sites, resume=resume):
        pass


def session_of(config, cache, run, *, resume=False):
    """Open a session and let its folder go again."""
    with open_session(config, cache, run, resume=resume) as session:
        return session


def test_a_run_keeps_its_settings_its_name_and_who_took_part(tiny_config, tmp_path):
    begin(tmp_path / "run", tiny_config, {0: "a", 3: "b"})
    assert read_config(tmp_path / "run") == tiny_config
    saved = read_provenance(tmp_path / "run")
    assert (saved["name"], saved["sites"], saved["manifest"]) == (
        "a name",
        {"0": "a", "3": "b"},
        None,
    )


def test_a_folder_that_is_no_run_is_told_once_and_with_advice(tmp_path):
    with pytest.raises(InputError) as caught:
        read_provenance(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a run: provenance.json cannot be read (No such file or directory); "
        "give the folder that `train fed --run` wrote"
    )


def test_scores_belong_to_the_one_cache_of_all_or_to_that_of_any_site(
    small_cache, tiny_config, tmp_path
):
    manifest = read_manifest(small_cache)
    for name, sites in (("parts", (digest(manifest),) * 2), ("own", ("another", digest(manifest)))):
        begin(tmp_path / name, tiny_config, dict(enumerate(sites)))
        require_same_cache(tmp_path / name, small_cache, manifest)
    begin(tmp_path / "strange", tiny_config, {0: "another", 1: "one more"})
    with pytest.raises(InputError, match="trained on another cache"):
        require_same_cache(tmp_path / "strange", small_cache, manifest)


def test_what_a_killed_process_left_half_written_is_gone_when_a_run_goes_on(tiny_config, tmp_path):
    run = tmp_path / "run"
    begin(run, tiny_config, {0: "a"})
    names = {path.name for path in run.iterdir()}
    killed = replacing(run / "resume.safetensors")
    killed.__enter__().write_text("half")
    begin(run, tiny_config, {0: "a"}, resume=True)
    assert {path.name for path in run.iterdir()} == names


def test_a_run_goes_on_with_the_same_settings_and_sites_alone(tiny_config, tmp_path):
    run = tmp_path / "run"
    begin(run, tiny_config, {0: "a", 1: "b"})
    begin(run, tiny_config, {0: "a", 1: "b"}, resume=True)
    with pytest.raises(InputError, match="other clients or with other data"):
        begin(run, tiny_config, {0: "a", 1: "c"}, resume=True)
    with pytest.raises(InputError, match=r"begun with other settings .*--rounds 9 instead of 2"):
        begin(run, tiny_config.model_copy(update={"rounds": 9}), {0: "a", 1: "b"}, resume=True)
    with pytest.raises(InputError, match="holds a run already"):
        begin(run, tiny_config, {0: "a", 1: "b"})


def test_a_run_that_cannot_be_made_is_refused_by_option(tiny_config, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(
        InputError, match=r"--run .*notes/run cannot be written \(Not a directory\)"
    ):
        begin(tmp_path / "notes" / "run", tiny_config, {0: "a"})


def test_a_run_keeps_how_its_clients_made_their_slices_and_an_old_one_gets_it_when_resumed(
    tiny_config, tmp_path
):
    run = tmp_path / "run"
    begin(run, tiny_config, {0: "a"})
    assert read_preprocessing(run) == PREPROCESSING
    (run / PREPROCESSING_NAME).unlink()
    begin(run, tiny_config, {0: "a"}, resume=True)
    assert read_preprocessing(run) == PREPROCESSING


def contents(run):
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(
    resume, small_cache, tiny_config, tmp_path
):
    run = tmp_path / "run"
    with open_session(tiny_config, small_cache, run, resume=False):
        before = contents(run)
        refused = "another `train` writes to" if resume else "holds a run already|another `train`"
        with pytest.raises(InputError, match=refused):
            session_of(tiny_config, small_cache, run, resume=resume)
        assert contents(run) == before
    session_of(tiny_config, small_cache, run, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_of_a_federation_across_machines_is_refused(resume, tiny_config, tmp_path):
    with (
        remote_run(tmp_path / "run", tiny_config, {0: "a"}),
        pytest.raises(InputError, match=r"another `train` writes to|holds a run already"),
    ):
        begin(tmp_path / "run", tiny_config, {0: "a"}, resume=resume)


def test_of_two_runs_that_begin_at_once_the_slower_is_refused(
    small_cache, tiny_config, tmp_path, monkeypatch
):
    run, quicker = tmp_path / "run", ExitStack()

    def overtake(*_):
        monkeypatch.undo()
        quicker.enter_context(open_session(tiny_config, small_cache, run, resume=False))
        monkeypatch.setattr("training.session.holds_run", lambda *_, **__: False)

    monkeypatch.setattr("training.session.require_company", overtake)
    other = tiny_config.model_copy(update={"seed": 9})
    with quicker, pytest.raises(InputError, match="another `train` writes to"):
        session_of(other, small_cache, run)
    assert read_config(run) == tiny_config


def test_the_slower_of_two_runs_overwrites_nothing_when_the_quicker_has_ended(
    small_cache, tiny_config, tmp_path, monkeypatch, observer
):
    run = tmp_path / "run"

    def overtake(*_):
        monkeypatch.undo()
        run_federation(tiny_config, small_cache, run, observer)

    monkeypatch.setattr("training.session.require_company", overtake)
    with pytest.raises(InputError, match="holds a run already"):
        session_of(tiny_config.model_copy(update={"seed": 9}), small_cache, run)
    assert read_config(run) == tiny_config


def test_a_file_system_without_locks_is_said_and_does_not_stop_training(
    small_cache, tiny_config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("cache_schema.locks.lock_file", lambda *_: False)
    session_of(tiny_config, small_cache, tmp_path / "run")
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'run'} is on a file system without locks")


def as_an_earlier_release(run):
    """Take the digests away from a run's files, and the version from its settings."""
    path = run / "config.json"
    settings = json.loads(path.read_text())
    del settings["settings_version"], settings["settings_digest"]
    path.write_text(json.dumps(settings))
    for name, key in (("model", "round"), ("resume", "position")):
        path = run / f"{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            value = file.metadata()[key]
        save_file(load_file(path), path, {key: value})


def test_a_run_of_an_earlier_release_goes_on_with_the_same_bits_and_has_digests_from_then_on(
    small_cache, tiny_config, tiny_run, tmp_path, observer, caplog
):
    run = tmp_path / "run"
    observer.round_done = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run_federation(tiny_config, small_cache, run, observer)
    del observer.round_done
    as_an_earlier_release(run)
    before = load_weights(run)[0]
    run_federation(tiny_config, small_cache, run, observer, resume=True)
    assert [text for text in caplog.messages if "begun by an earlier release" in text] == [
        f"{run} was begun by an earlier release: its files have digests from now on"
    ]
    assert load_file(run / "model.safetensors").keys() == before.keys()
    for name in ("config.json", "model.safetensors", "resume.safetensors"):
        assert (run / name).read_bytes() == (tiny_run / name).read_bytes()


def test_the_weights_of_an_earlier_release_are_used_as_they_are(small_cache, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    as_an_earlier_release(run)
    state, number = load_weights(run)
    assert number == 2
    assert all(torch.equal(state[name], t) for name, t in load_weights(tiny_run)[0].items())
    names = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert trained_model(run, read_config(run))[1] == 2
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == names


@pytest.mark.parametrize("name", ["resume", "model"])
def test_a_flipped_bit_in_what_a_run_saved_is_refused(
    name, small_cache, tiny_run, tmp_path, observer
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    path = run / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    if name == "model":
        with pytest.raises(InputError, match=r"model\.safetensors .*its digest differs"):
            trained_model(run, read_config(run))
    else:
        with pytest.raises(InputError, match=r"resume\.safetensors .*its digest differs"):
            run_federation(read_config(run), small_cache, run, observer, resume=True)


def test_a_checkpoint_of_another_network_is_refused(
    small_cache, tiny_config, tiny_run, tmp_path, observer
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    groups, position = load_resume(run)
    groups["model"]["layers.0.weight"] = torch.zeros(7, 4, 3, 3)
    save_resume(run, groups, position)
    with pytest.raises(InputError, match=r"does not fit the run \(layers\.0\.weight is"):
        run_federation(tiny_config, small_cache, run, observer, resume=True)


class OneSlice(SliceDataset):
    """A cache of which a client has a single slice."""

    def count(self, clients):
        return min(super().count(clients), 1 if tuple(clients) == (1,) else 10**9)


@pytest.fixture
def deep(tiny_config, monkeypatch):
    """Settings of a network whose BatchNorm gets a single value of each channel of a slice."""
    monkeypatch.setitem(MODELS, "deep", Network(lambda *, num_classes: Deep(nn.BatchNorm2d)))
    return tiny_config.model_copy(update={"model": "deep", "crop": 32, "batch_size": 2})


@pytest.mark.parametrize("strategy", ["fedavg", CENTRAL])
def test_a_batch_too_small_for_the_network_is_refused_before_a_folder_is_made(
    strategy, small_cache, deep, tmp_path
):
    run = tmp_path / "run"
    config = deep.model_copy(update={"strategy": strategy, "batch_size": 1})
    with pytest.raises(InputError, match=r"^--batch-size 1: .*--crop"):
        session_of(config, small_cache, run)
    assert not run.exists()
    wider = config.model_copy(update={"crop": 64})
    assert session_of(wider, small_cache, run).least_batch == 1


def test_a_client_with_a_single_slice_is_refused_before_a_folder_is_made_unless_it_has_company(
    small_cache, deep, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.training_set.SliceDataset", OneSlice)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"^client 1 has a single .*--slices all.*--crop.*--min"):
        session_of(deep, small_cache, run)
    assert not run.exists()
    central = deep.model_copy(update={"strategy": CENTRAL})
    assert session_of(central, small_cache, tmp_path / "all").least_batch == 2
    wider = deep.model_copy(update={"crop": 64})
    assert session_of(wider, small_cache, run).members == [0, 1]


@pytest.mark.parametrize("name", ["log.jsonl", "tensorboard"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_link_inside_a_run_is_refused_and_nothing_behind_it_is_changed(
    name, resume, tiny_config, tmp_path
):
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "events.out.tfevents.1").write_text("mine")
    (outside / "log.jsonl").write_text("mine\n")
    run.mkdir()
    if resume:
        begin(run, tiny_config, {0: "a"})
    (run / name).symlink_to(outside / "log.jsonl" if name == "log.jsonl" else outside)
    with pytest.raises(InputError, match=f"{name} is a link"):
        begin(run, tiny_config, {0: "a"}, resume=resume)
    assert (outside / "events.out.tfevents.1").read_text() == "mine"
    assert (outside / "log.jsonl").read_text() == "mine\n"


def test_a_session_refuses_a_link_in_its_run_too(small_cache, tiny_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path)
    with pytest.raises(InputError, match="tensorboard is a link"):
        session_of(tiny_config, small_cache, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tensorboard"]
