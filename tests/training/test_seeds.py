import torch

from training.seeds import derive_seed, generator


def test_every_stream_has_its_own_seed():
    streams = [(r, c, p) for r in range(5) for c in range(5) for p in range(3)]
    assert len({derive_seed(7, *stream) for stream in streams}) == len(streams)


def test_another_run_seed_gives_other_streams():
    assert derive_seed(7, 1, 2) != derive_seed(8, 1, 2)


def test_the_same_stream_gives_the_same_numbers():
    first, second = (torch.rand(3, generator=generator(7, 1, 2)) for _ in range(2))
    assert torch.equal(first, second)


def test_seeds_are_what_torch_accepts():
    assert all(0 <= derive_seed(seed, 3) < 2**63 for seed in range(200))
