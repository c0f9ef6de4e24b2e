import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from cache_schema.errors import InputError
from training.checkpoint import (
    RESUME_NAME,
    WEIGHTS_NAME,
    load_resume,
    load_weights,
    save_resume,
    save_weights,
)
from training.config import TrainConfig, write_config

STATE = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}


def test_weights_come_back_with_their_round(tmp_path):
    save_weights(tmp_path, STATE, round_number=4)
    state, round_number = load_weights(tmp_path)
    assert round_number == 4
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert state["n"].dtype == torch.int64


def test_other_programs_can_read_the_weights(tmp_path):
    save_weights(tmp_path, {"w": STATE["w"].t()}, round_number=1)
    assert load_file(tmp_path / WEIGHTS_NAME)["w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_a_failed_save_leaves_the_old_weights_whole(tmp_path, failing_sync):
    save_weights(tmp_path, STATE, round_number=1)
    with (
        failing_sync(1, OSError(28, "No space left on device")),
        pytest.raises(InputError, match=r"cannot be written \(No space left on device\).*--resume"),
    ):
        save_weights(tmp_path, {"w": torch.zeros(2, 3), "n": torch.tensor(0)}, round_number=2)
    assert load_weights(tmp_path)[1] == 1
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_NAME]


def test_a_truncated_file_is_named(tmp_path):
    save_weights(tmp_path, STATE, round_number=1)
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=WEIGHTS_NAME):
        load_weights(tmp_path)


def test_a_run_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match="first round"):
        load_weights(tmp_path)


def test_a_link_in_place_of_weights_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / WEIGHTS_NAME).symlink_to("victim")
    save_weights(tmp_path, STATE, round_number=1)
    assert (tmp_path / "victim").read_text() == "mine"
    assert load_weights(tmp_path)[1] == 1


def test_a_pipe_in_place_of_weights_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / WEIGHTS_NAME)
    with pytest.raises(InputError, match="a pipe, not a file"):
        load_weights(tmp_path)


@pytest.mark.parametrize("size", [2**40, 10**9, 2**27], ids=str)
def test_a_header_that_claims_gigabytes_is_refused_unread(size, tmp_path):
    (tmp_path / WEIGHTS_NAME).write_bytes(struct.pack("<Q", size) + b"{")
    os.truncate(tmp_path / WEIGHTS_NAME, 8 * 10**9)
    with pytest.raises(InputError, match="header too large"):
        load_weights(tmp_path)


def test_a_sparse_file_of_50_gb_is_refused_unread(tmp_path):
    size = 50 * 10**9
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"round": "1"}, "w": tensor}).encode()
    (tmp_path / WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(tmp_path / WEIGHTS_NAME, 8 + len(header) + size)
    with pytest.raises(InputError, match="larger than 8,589,934,592 bytes"):
        load_weights(tmp_path)


def old_file(path, tensors, **metadata):
    """Write a file as earlier releases did."""
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "metadata", [{"round": ""}, {"round": "-1"}, {"round": "two"}, {"round": "9" * 5000 + "x"}]
)
def test_a_round_that_is_none_is_one_line(metadata, tmp_path):
    old_file(tmp_path / WEIGHTS_NAME, STATE, **metadata)
    with pytest.raises(InputError, match=WEIGHTS_NAME) as caught:
        load_weights(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("position", ["", "[]", "{", "[" * 100_000, '{"round": NaN}'])
def test_a_position_that_is_none_is_one_line(position, tmp_path):
    old_file(tmp_path / RESUME_NAME, {"model/w": STATE["w"]}, position=position)
    with pytest.raises(InputError, match=r"resume\.safetensors does not fit the run"):
        load_resume(tmp_path)


def test_a_tensor_of_no_group_is_one_line(tmp_path):
    old_file(tmp_path / RESUME_NAME, {"w": STATE["w"]}, position='{"round": 1}')
    with pytest.raises(InputError, match=r"resume\.safetensors does not fit the run"):
        load_resume(tmp_path)


def test_a_run_of_this_release_takes_no_file_without_a_digest(tmp_path):
    write_config(tmp_path, TrainConfig())
    old_file(tmp_path / WEIGHTS_NAME, STATE, round="1")
    old_file(tmp_path / RESUME_NAME, {"model/w": STATE["w"]}, position='{"round": 1}')
    for load in (load_weights, load_resume):
        with pytest.raises(InputError, match="lost their digest"):
            load(tmp_path)


def test_a_run_takes_no_file_of_a_run_with_other_settings(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_config(tmp_path / name, TrainConfig(seed=seed))
        save_weights(tmp_path / name, STATE, round_number=1)
        save_resume(tmp_path / name, {"model": STATE}, {"round": 1})
    for name, load in ((WEIGHTS_NAME, load_weights), (RESUME_NAME, load_resume)):
        (tmp_path / "a" / name).replace(tmp_path / "b" / name)
        with pytest.raises(InputError, match="run with other settings"):
            load(tmp_path / "b")


def test_the_same_weights_are_the_same_bytes_wherever_they_were_trained(tmp_path):
    places = {"a": {"device": "cpu"}, "b": {"device": "cpu,cpu", "loader_workers": 4}}
    for name, settings in places.items():
        write_config(tmp_path / name, TrainConfig(**settings))
        save_weights(tmp_path / name, STATE, round_number=1)
    first, second = ((tmp_path / name / WEIGHTS_NAME).read_bytes() for name in places)
    assert first == second


def test_the_checkpoint_is_not_taken_for_the_weights(tmp_path):
    save_resume(tmp_path, {"model": STATE}, {"round": 1})
    (tmp_path / RESUME_NAME).rename(tmp_path / WEIGHTS_NAME)
    with pytest.raises(InputError, match="do not tell its round"):
        load_weights(tmp_path)
