"""A network of one's own on the slices of a cache, in plain PyTorch."""

import argparse
from pathlib import Path
from statistics import mean

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler

from training.data import SliceDataset

BATCH_SIZE = 8


def make_network() -> nn.Module:
    """Make three layers: four modalities in, a score for each of four classes out."""
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )


def main(cache: Path, steps: int) -> None:
    """Train on slices of all clients; shards of the test set are not opened."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    slices = SliceDataset(cache, slices="tumour")
    sampler = RandomSampler(slices, replacement=True, num_samples=BATCH_SIZE * steps)
    loader = DataLoader(slices, batch_size=BATCH_SIZE, sampler=sampler)
    network = make_network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for image, label in loader:
        # BraTS calls the classes 0, 1, 2 and 4; cross-entropy wants them without a gap.
        classes = torch.where(label == 4, 3, label).long()
        scores = network(image.to(device).float())  # shards hold float16
        loss = functional.cross_entropy(scores, classes.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss of the first steps {mean(losses[:5]):.3f}, of the last {mean(losses[-5:]):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    main(**vars(parser.parse_args()))
