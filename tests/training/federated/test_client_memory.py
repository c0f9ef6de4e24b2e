import torch

from training.federated.client_memory import ClientMemory


def value(memory, client, before_round):
    return {name: tensor.item() for name, tensor in memory.load(client, before_round).items()}


def state(number):
    return {"c": torch.tensor(float(number))}


def test_a_client_gets_what_it_kept_in_the_last_of_its_rounds(tmp_path):
    memory = ClientMemory(tmp_path / "clients")
    assert value(memory, 3, 1) == {}
    memory.save(3, 1, state(1))
    memory.save(3, 9, state(9))
    memory.save(13, 2, state(2))
    assert value(memory, 3, 2) == {"c": 1.0}
    assert value(memory, 3, 10) == {"c": 9.0}
    assert value(memory, 13, 10) == {"c": 2.0}


def test_a_round_that_is_done_again_starts_from_what_was_kept_before_it(tmp_path):
    memory = ClientMemory(tmp_path / "clients")
    memory.save(0, 4, state(4))
    memory.save(0, 10, state(10))
    assert value(memory, 0, 10) == {"c": 4.0}


def test_only_what_nobody_needs_any_more_is_removed(tmp_path):
    memory = ClientMemory(tmp_path / "clients")
    for number in (1, 2, 10, 11):
        memory.save(0, number, state(number))
    memory.save(1, 1, state(1))
    memory.forget_before(10)
    names = sorted(path.name for path in (tmp_path / "clients").iterdir())
    assert names == [f"client-{n}.safetensors" for n in ("00.10", "00.11", "01.1")]


def test_nothing_kept_is_no_file(tmp_path):
    memory = ClientMemory(tmp_path / "clients")
    memory.save(0, 1, {})
    memory.forget_before(1)
    assert not (tmp_path / "clients").exists()
