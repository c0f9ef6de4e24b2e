"""One seed to many independent ones."""

import numpy as np
import torch


def derive_seed(seed: int, *stream: int) -> int:
    """Derive a seed for one purpose, such as (round, client, epoch), from the seed of a run.

    Neighbouring streams give unrelated numbers, and the same stream always gives the same one, so
    nothing random depends on what ran before it.
    """
    words = np.random.SeedSequence([seed, *stream]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generator(seed: int, *stream: int) -> torch.Generator:
    """Make a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))
