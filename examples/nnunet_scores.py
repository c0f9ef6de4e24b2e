"""What nnU-Net predicted for the test cases of a cache, scored as networks of this project are."""

import argparse
from pathlib import Path

import nibabel
import numpy as np

from cache_schema.geometry import restore_volume, spacing_mm
from cache_schema.leakage import describe_leakage
from training.data import VolumeDataset
from training.metrics import score_case


def read_prediction(path: Path) -> np.ndarray:
    """Read labels 0, 1, 2, 4 in the case's own axes."""
    labels = np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj).astype(np.uint8)
    labels[labels == 3] = 4  # exported as 3, since nnU-Net wants labels without a gap
    return labels


def main(cache: Path, predictions: Path) -> None:
    """Print the Dice of every test case, and whether its patient may have been trained on."""
    volumes = VolumeDataset(cache, split="test")
    for index in range(len(volumes)):
        volume = volumes[index]
        scores = score_case(
            restore_volume(volume.label, volume.z, volume.shape),
            read_prediction(predictions / f"{volume.case_id}.nii.gz"),
            spacing_mm(volume.affine),
        )
        dice = " ".join(f"{region} {value:.3f}" for region, value in scores["dice"].items())
        print(f"{volume.case_id}: Dice {dice}")
    print(describe_leakage(volumes.manifest.leakage))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("predictions", type=Path, help="what nnUNetv2_predict wrote")
    main(**vars(parser.parse_args()))
