"""A network, a loss and a sliding window of MONAI on a cache, scored as BraTS 2020 did."""

import argparse
from pathlib import Path
from statistics import mean
from typing import cast

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceLoss
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cache_schema.geometry import restore_volume, spacing_mm
from cache_schema.leakage import describe_leakage
from training.data.volumes import CaseVolume, PatchDataset, PatchSampling, VolumeDataset
from training.metrics import score_case
from training.targets import decode_prediction, encode_target

BATCH_SIZE = 2
PATCH = (16, 32, 32)  # slices, rows, columns; (128, 128, 128) is usual for BraTS


def make_network() -> nn.Module:
    """Make a small U-Net; it halves a patch twice, so the sides must be multiples of 4."""
    return UNet(
        spatial_dims=3,
        in_channels=4,
        out_channels=3,
        channels=(8, 16, 32),
        strides=(2, 2),
        norm="batch",
    )


def train(network: nn.Module, cache: Path, steps: int) -> None:
    """Train on patches of all clients' cases; shards of the test set are not opened."""
    device = next(network.parameters()).device
    patches = PatchDataset(cache, PatchSampling(PATCH))
    cases = np.random.default_rng(0).integers(len(patches), size=BATCH_SIZE * steps)
    loader = DataLoader(patches, batch_size=BATCH_SIZE, sampler=patches.keys(cases, seed=0))
    # Regions lie inside each other, so a voxel has several: a sigmoid for each, no softmax.
    criterion = DiceLoss(sigmoid=True, batch=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for image, label in loader:
        target = encode_target(label.to(device), "regions")
        loss = criterion(network(image.to(device).float()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss of the first steps {mean(losses[:5]):.3f}, of the last {mean(losses[-5:]):.3f}")


@torch.inference_mode()
def segment(network: nn.Module, volume: CaseVolume) -> Tensor:
    """Find the labels 0, 1, 2, 4 of a whole case, slice by slice as in the shard."""
    device = next(network.parameters()).device
    image = torch.from_numpy(volume.image).to(device).float()
    image = image.swapaxes(0, 1).unsqueeze(0)  # (slice, 4, row, column) to (1, 4, slice, ...)
    logits = sliding_window_inference(
        image, PATCH, sw_batch_size=4, predictor=network, overlap=0.5, mode="gaussian"
    )
    probability = cast("Tensor", logits).sigmoid()
    return decode_prediction(probability, "regions")[0].cpu()


def score(network: nn.Module, cache: Path) -> None:
    """Print the Dice of every test case, and whether its patient may have been trained on."""
    network.eval()
    volumes = VolumeDataset(cache, split="test")
    for index in range(len(volumes)):
        volume = volumes[index]
        scores = score_case(
            restore_volume(volume.label, volume.z, volume.shape),
            restore_volume(segment(network, volume).numpy(), volume.z, volume.shape),
            spacing_mm(volume.affine),
        )
        dice = " ".join(f"{region} {value:.3f}" for region, value in scores["dice"].items())
        print(f"{volume.case_id}: Dice {dice}")
    print(describe_leakage(volumes.manifest.leakage))


def main(cache: Path, steps: int) -> None:
    """Train and score."""
    torch.manual_seed(0)
    network = make_network().to("cuda" if torch.cuda.is_available() else "cpu")
    train(network, cache, steps)
    score(network, cache)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    main(**vars(parser.parse_args()))
