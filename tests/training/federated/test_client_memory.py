import pytest
import torch

from cache_schema.errors import InputError
from training.federated.client_memory import ClientMemory


def state(number):
    return {"c": torch.tensor(float(number))}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_client_gets_what_it_kept_in_the_round_that_counts(tmp_path):
    memory = ClientMemory(tmp_path / "clients")
    assert memory.load(3, None) == {}
    for client, number in ((3, 1), (3, 9), (13, 9)):
        memory.save(client, number, state(10 * client + number))
    assert memory.load(3, 1)["c"].item() == 31.0
    assert memory.load(3, 9)["c"].item() == 39.0
    assert memory.load(13, 9)["c"].item() == 139.0


def test_what_was_kept_and_is_gone_is_missed(tmp_path):
    memory = ClientMemory(tmp_path)
    memory.save(3, 1, state(1))
    with pytest.raises(InputError, match=r"client-03\.2\.safetensors is gone.* kept in round 2"):
        memory.load(3, 2)


def test_other_rounds_of_a_client_are_forgotten_older_and_newer(tmp_path):
    memory = ClientMemory(tmp_path)
    for client, number in ((0, 2), (0, 10), (0, 11), (1, 1), (10, 1)):
        memory.save(client, number, state(number))
    memory.forget_all_but(0, 10)
    assert names(tmp_path) == [f"client-{n}.safetensors" for n in ("00.10", "01.1", "10.1")]
    memory.forget_all_but(1, None)
    assert names(tmp_path) == [f"client-{n}.safetensors" for n in ("00.10", "10.1")]


def test_a_folder_that_leads_elsewhere_is_neither_written_to_nor_cleared(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "client-03.1.safetensors").write_text("mine")
    (tmp_path / "clients").symlink_to("outside")
    memory = ClientMemory(tmp_path / "clients")
    with pytest.raises(InputError, match="clients is a link"):
        memory.save(3, 2, state(1))
    with pytest.raises(InputError, match="clients is a link"):
        memory.forget_all_but(3, None)
    assert names(tmp_path / "outside") == ["client-03.1.safetensors"]
