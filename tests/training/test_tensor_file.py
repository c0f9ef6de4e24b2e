"""Tensors on disk: every bit as it was written, or one line."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file

from cache_schema.errors import InputError
from training.tensor_file import read_tensors, write_tensors

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True]), "n": torch.tensor(7)}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", STATE, {"round": "4"})
    return tmp_path / "a.safetensors"


def read(path, key="round", *, is_sealed=True):
    return read_tensors(path, key, is_sealed=is_sealed, advice="do this")


def refuse(path, match=".", **kinds):
    with pytest.raises(InputError, match=match) as caught:
        read(path, **kinds)
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert str(caught.value).endswith("; do this")
    assert "\n" not in str(caught.value)


def split(content):
    stop = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:stop]), content[stop:]


def join(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_and_metadata_come_back(path):
    tensors, metadata = read(path)
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert all(tensors[name].dtype == STATE[name].dtype for name in STATE)
    assert metadata["round"] == "4"
    assert len(metadata["sha256"]) == 64


def test_other_programs_read_the_tensors(path):
    assert load(path.read_bytes())["b"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    with safe_open(path, framework="np") as file:
        assert file.metadata()["round"] == "4"


def test_the_same_tensors_are_the_same_bytes(path):
    content = path.read_bytes()
    for _ in range(20):  # safetensors itself has metadata in any order
        write_tensors(path, STATE, {"round": "4"})
        assert path.read_bytes() == content
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_flipped_bit_anywhere_is_refused(is_sealed, path):
    content = path.read_bytes()
    for place in range(len(content)):
        bit = 1 << (place % 8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        refuse(path, is_sealed=is_sealed)
    path.write_bytes(content)
    read(path, is_sealed=is_sealed)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_cut_file_is_refused(length, path):
    path.write_bytes(path.read_bytes()[:length])
    refuse(path)


def test_a_file_of_an_earlier_release_is_read_only_where_one_may_be_and_that_is_said_once(
    path, caplog
):
    save_file(STATE, path, {"round": "3"})
    for _ in range(2):
        assert read(path, is_sealed=False)[1] == {"round": "3"}
    assert caplog.messages == [
        f"{path} is of an earlier release and has no digest: damage would not be noticed"
    ]
    refuse(path, "lost their digest")


@pytest.mark.parametrize("key", ["sha256", "layout", "name"])
def test_a_part_of_the_seal_cannot_be_lost(key, path):
    header, data = split(path.read_bytes())
    del header["__metadata__"][key]
    path.write_bytes(join(header, data))
    refuse(path, "lost their digest", is_sealed=False)


def test_a_changed_value_behind_the_old_digest_is_refused(path):
    header, data = split(path.read_bytes())
    for name, value in (("round", "5"), ("sha256", "0" * 64), ("layout", "3")):
        changed = {**header, "__metadata__": {**header["__metadata__"], name: value}}
        path.write_bytes(join(changed, data))
        refuse(path, is_sealed=False)


def test_a_file_under_the_name_of_another_is_refused(path):
    path.rename(path.with_name("b.safetensors"))
    refuse(path.with_name("b.safetensors"), r"written as a\.safetensors")


def test_what_lacks_the_key_is_refused(path):
    refuse(path, "do not tell its position", key="position")
    save_file(STATE, path)
    refuse(path, "do not tell its round", is_sealed=False)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04", bytes(64), b"\xff" * 64])
def test_other_files_are_one_line(content, path):
    path.write_bytes(content)
    refuse(path, is_sealed=False)


def test_a_folder_a_pipe_and_nothing_are_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "folder")
    refuse(tmp_path / "pipe", "pipe, not a file")
    refuse(tmp_path / "none", "No such file")


def test_a_header_that_claims_more_than_there_is_is_refused(path):
    header = {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    path.write_bytes(join({**header, "__metadata__": {"round": "4"}}, save({})))
    refuse(path, is_sealed=False)
