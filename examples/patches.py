"""A network of three dimensions on patches of a cache's volumes, in plain PyTorch."""

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from training.data.volumes import PatchDataset, PatchSampling
from training.losses import segmentation_loss
from training.targets import encode_target

BATCH_SIZE = 2
PATCH = (16, 32, 32)  # slices, rows, columns; (128, 128, 128) is usual for BraTS


def make_network() -> nn.Module:
    """Make three layers: four modalities in, a plane for each of three regions out."""
    return nn.Sequential(
        nn.Conv3d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(8, 8, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv3d(8, 3, 1),
    )


def main(cache: Path, steps: int) -> None:
    """Train on patches of all clients' cases; shards of the test set are not opened."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    patches = PatchDataset(cache, PatchSampling(PATCH, tumour_share=0.5))
    cases = np.random.default_rng(0).integers(len(patches), size=BATCH_SIZE * steps)
    # A patch is asked for by its case and a seed, so that the same key gives the same patch again.
    keys = patches.keys(cases, seed=0)
    loader = DataLoader(patches, batch_size=BATCH_SIZE, sampler=keys)
    network = make_network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for image, label in loader:
        target = encode_target(label.to(device), "regions")  # planes of 0 and 1: ET, TC, WT
        loss = segmentation_loss(network(image.to(device).float()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss of the first steps {mean(losses[:5]):.3f}, of the last {mean(losses[-5:]):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    main(**vars(parser.parse_args()))
