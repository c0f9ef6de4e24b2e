"""What networks are trained and evaluated on, read from a cache: the two datasets for any other model."""

from training.data.slices import SliceDataset
from training.data.volumes import VolumeDataset

__all__ = ["SliceDataset", "VolumeDataset"]
