"""State dicts of others: tensors are read, nothing is run, nothing is unpacked beyond measure."""

import io
import os
import pickle
import tracemalloc
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cache_schema.errors import InputError
from training.checkpoint import WEIGHTS_NAME, load_weights
from training.models.state_dict import StateDictError, read_state_dict

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, -2])}


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def legacy(thing: object, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def plain(thing: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


@pytest.mark.parametrize(
    ("save", "name"), [(save_file, "w.safetensors"), (torch.save, "w.pth"), (legacy, "w.pth")]
)
def test_tensors_come_back_as_they_were(save, name, tmp_path):
    save(STATE, tmp_path / name)
    state = read_state_dict(tmp_path / name)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("save", [torch.save, legacy, plain])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pt2", "w.bin", "model.safetensors"])
def test_a_planted_pickle_runs_nothing_under_any_name(save, name, tmp_path):
    save({"a": Planted(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(StateDictError) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_place_of_a_runs_weights_runs_nothing(tmp_path):
    torch.save({"a": Planted(tmp_path / "ran")}, tmp_path / WEIGHTS_NAME)
    with pytest.raises(InputError, match=WEIGHTS_NAME):
        load_weights(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "thing", [nn.Linear(2, 2), [torch.zeros(2)], {"a": 3}, {"a": {"b": STATE}}]
)
def test_what_is_no_dictionary_of_tensors_is_refused(thing, tmp_path):
    torch.save(thing, tmp_path / "w.pth")
    with pytest.raises(StateDictError, match="tensors"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content", [b"", b"root:x:0:0", b"PK\x03\x04", b"\x80\x02}q\x00(", b"\x80\x05."]
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_any_other_file_is_one_line(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StateDictError, match=r"^[^\n]+$"):
        read_state_dict(tmp_path / name)


def test_a_file_that_unpacks_to_gigabytes_is_refused_packed(tmp_path):
    file = io.BytesIO()
    torch.save(STATE, file)
    with (
        zipfile.ZipFile(file) as archive,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for entry in archive.infolist():
            is_tensor = "/data/" in entry.filename
            bomb.writestr(entry.filename, bytes(2**28) if is_tensor else archive.read(entry))
    tracemalloc.start()
    with pytest.raises(StateDictError, match="unpacks to more than 268,435,456 bytes"):
        read_state_dict(tmp_path / "w.pth")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_sparse_file_and_a_pipe_are_refused_unread(tmp_path):
    (tmp_path / "w.pth").touch()
    os.truncate(tmp_path / "w.pth", 50 * 10**9)
    with pytest.raises(StateDictError, match="larger than"):
        read_state_dict(tmp_path / "w.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(StateDictError, match="a pipe"):
        read_state_dict(tmp_path / "pipe.pth")


def test_a_digest_is_that_of_all_bytes(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    digest = sha256(content).hexdigest()
    assert read_state_dict(tmp_path / "w.safetensors", digest=digest).keys() == STATE.keys()
    (tmp_path / "w.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StateDictError, match=f"its SHA-256 is not {digest}"):
        read_state_dict(tmp_path / "w.safetensors", digest=digest)


@pytest.mark.parametrize(
    "text", ["root:x:0:0:root:/root:/bin/bash\n", "127.0.0.1 localhost\n", "\n"]
)
def test_a_text_is_no_file_of_tensors(text, tmp_path):
    (tmp_path / "passwd").write_text(text)
    with pytest.raises(
        StateDictError, match=r"^it (is no file of|holds other things than) tensors$"
    ):
        read_state_dict(tmp_path / "passwd")
