"""A LightningModule and a LightningDataModule on the slices of a cache."""

import argparse
import logging
from pathlib import Path

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cache_schema.manifest import read_manifest
from training.data.slices import Slice, SliceDataset
from training.losses import segmentation_loss
from training.targets import encode_target


class Slices(LightningDataModule):
    """Trains on all clients but the last, and validates on that one: nobody is on two clients."""

    def __init__(self, cache: Path, batch_size: int = 8) -> None:
        """Open the shards of clients; those of the test set are left alone."""
        super().__init__()
        *others, last = range(read_manifest(cache).options.clients)
        self.training = SliceDataset(cache, clients=others, slices="tumour")
        self.validation = SliceDataset(cache, clients=[last])
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Slice]:
        """Shuffle."""
        return DataLoader(self.training, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Slice]:
        """Keep the order."""
        return DataLoader(self.validation, self.batch_size)


class Segmenter(LightningModule):
    """Predicts a plane for each of the regions ET, TC, WT."""

    def __init__(self, learning_rate: float = 1e-2) -> None:
        """Make three layers."""
        super().__init__()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(
            nn.Conv2d(4, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(16, 3, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits; shards hold float16."""
        logits: Tensor = self.layers(image.float())
        return logits

    def training_step(self, batch: Slice) -> Tensor:
        """Compute binary cross-entropy plus soft Dice."""
        return segmentation_loss(self(batch.image), encode_target(batch.label, "regions"))

    def validation_step(self, batch: Slice) -> None:
        """Log the same of slices that are not trained on."""
        loss = segmentation_loss(self(batch.image), encode_target(batch.label, "regions"))
        self.log("val_loss", loss, batch_size=len(batch.image))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Take Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def main(cache: Path, steps: int) -> None:
    """Validate, train, validate."""
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(
        max_steps=steps,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data, model = Slices(cache), Segmenter()
    (before,) = trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    (after,) = trainer.validate(model, data, verbose=False)
    print(f"validation loss {before['val_loss']:.3f} before, {after['val_loss']:.3f} after")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    main(**vars(parser.parse_args()))
