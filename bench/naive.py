"""The training step as one writes it first: plain eager PyTorch on the same weights.

Each equation of the paper is a line or two: a position is a pixel of (batch, channel, row, column)
tensors, 1x1 convolutions are convolutions, attention makes its whole matrix, pair after pair, and each
scale has its own pass through the loss. Every modality is projected once, not once a pair, and
augmentation is ours: what is not written here is not slower than it need be. It reads the weights of a
`UNetMM` and computes the same numbers.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from training.augment import AugmentSettings, apply, draw
from training.config import TrainConfig
from training.data.slices import Slice
from training.device import choose_device
from training.losses import SMOOTH
from training.models.initial import random_model
from training.models.logits import SCALE_RATIOS, Logits
from training.models.unetmm.correlation import CorrelationAttention
from training.models.unetmm.cross_modal import NUM_MODALITIES, OTHERS, CrossModalAttention
from training.models.unetmm.encoder import LEVELS, Encoder, Level
from training.models.unetmm.fusion import Fusion
from training.models.unetmm.network import UNetMM
from training.seeds import generator
from training.targets import encode_target


class NaiveTraining:
    """A network in training by the naive step, from step 0 of a run.

    Without dropout, which would draw other numbers than ours.
    """

    def __init__(self, config: TrainConfig, dtype: torch.dtype) -> None:
        """Build network and optimiser on the device where they train.

        Args:
            config: Of the run.
            dtype: float32 without autocast, or what autocast is to use.
        """
        self._config = config
        self._dtype = dtype
        self._device = choose_device(config.device)
        model = random_model(config)
        assert isinstance(model, UNetMM)
        turn_off_dropout(model)
        self._model = model.to(self._device).train()
        self._optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self._settings = AugmentSettings(config.rotation_deg, noise_std=config.noise_std)

    def train(self, batches: Iterator[Slice], num_steps: int) -> list[float]:
        """Train for some steps and return their losses."""
        return [self._step(batch, step) for step, batch in enumerate(islice(batches, num_steps))]

    def _step(self, batch: Slice, step: int) -> float:
        rows, columns = batch.image.shape[2:]
        drawn = draw(
            generator(self._config.seed, step, 0),  # as `fit` draws for a stream without a name
            len(batch.image),
            plane=(rows, columns),
            crop=self._config.crop,
            settings=self._settings,
        )
        image, label = apply(drawn, batch.image.to(self._device), batch.label.to(self._device))
        target = encode_target(label, self._config.target)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = forward(self._model, image)
        loss = deep_supervision_loss(logits, target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


def turn_off_dropout(model: nn.Module) -> None:
    """Let a network keep everything while it trains."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def forward(model: UNetMM, image: Float[Tensor, "batch 4 height width"]) -> Logits:
    """Compute what `model(image)` computes; decoder and heads are plain convolutions in ours too."""
    features = encode(model.encoder, image)
    fused = [fuse(model.fusion[level], features[level]) for level in reversed(LEVELS)]  # type: ignore[arg-type]
    logits: Logits = model.heads(model.decoder(fused))
    return logits


def encode(
    encoder: Encoder, image: Float[Tensor, "batch 4 height width"]
) -> dict[Level, Float[Tensor, "batch 4 _ _ _"]]:
    """Encode all modalities together, as BatchNorm has to see them together."""
    gray = image.flatten(0, 1).unsqueeze(1)
    features = [encoder.relu(encoder.bn1(encoder.conv1(gray.repeat(1, 3, 1, 1))))]
    features.append(encoder.layer1(encoder.maxpool(features[-1])))
    for layer in (encoder.layer2, encoder.layer3, encoder.layer4):
        features.append(layer(features[-1]))
    shape = image.shape[:2]
    return {
        level: feature.unflatten(0, shape) for level, feature in zip(LEVELS, features, strict=True)
    }


def fuse(
    fusion: Fusion, features: Float[Tensor, "batch 4 channel rows columns"]
) -> Float[Tensor, "batch channel rows columns"]:
    """Fuse one level: positions, cross-modal attention where there is one, correlation attention."""
    modalities: Sequence[Tensor] = fusion.position(features).unbind(1)
    if fusion.cross_modal is not None:
        modalities = fuse_across(fusion.cross_modal, modalities)
    return correlate(fusion.correlation, torch.cat(tuple(modalities), dim=1))


def fuse_across(
    module: CrossModalAttention, modalities: Sequence[Float[Tensor, "batch channel rows columns"]]
) -> list[Float[Tensor, "batch channel rows columns"]]:
    """Let every modality look up the others, equation 8, primary after primary."""
    expand, activation, reduce = module.mlp
    projected = [conv1x1(module.query_key_value, each).chunk(3, dim=1) for each in modalities]
    fused = []
    for primary in range(NUM_MODALITIES):
        query = projected[primary][0]
        found = [
            conv1x1(module.output, attend(query, *projected[auxiliary][1:]))
            for auxiliary in OTHERS[primary]
        ]
        joined = modalities[primary] + conv1x1(module.fuse, torch.cat(found, dim=1))
        fused.append(conv1x1(reduce, activation(conv1x1(expand, module.dropout(joined)))))
    return fused


def attend(
    query: Float[Tensor, "batch channel rows columns"],
    key: Float[Tensor, "batch channel rows columns"],
    value: Float[Tensor, "batch channel rows columns"],
) -> Float[Tensor, "batch channel rows columns"]:
    """Attend from all positions to all positions, with the matrix of their pairs in memory."""
    queries, keys, values = (each.flatten(2) for each in (query, key, value))
    scores = queries.transpose(1, 2) @ keys / math.sqrt(query.shape[1])
    found = values @ scores.softmax(dim=-1).transpose(1, 2)
    unfolded: Tensor = found.unflatten(2, query.shape[2:])
    return unfolded


def correlate(
    module: CorrelationAttention, joint: Float[Tensor, "batch joint rows columns"]
) -> Float[Tensor, "batch channel rows columns"]:
    """Weigh the channels of all modalities and merge them, equations 9 to 11."""
    weight = module.excite(joint.mean(dim=(2, 3)))
    return conv1x1(module.merge, joint * weight[:, :, None, None])


def conv1x1(
    linear: nn.Module, image: Float[Tensor, "batch in_channel rows columns"]
) -> Float[Tensor, "batch out_channel rows columns"]:
    """Apply a linear map of the channels as the convolution that it is."""
    assert isinstance(linear, nn.Linear)
    return functional.conv2d(image, linear.weight[:, :, None, None], linear.bias)


def deep_supervision_loss(
    logits: Logits, target: Float32[Tensor, "batch class height width"]
) -> Float32[Tensor, ""]:
    """Sum the losses of all scales and of the final output, equation 16, one after the other."""
    loss = segmentation_loss(logits.final, target)
    for ratio, scale in zip(SCALE_RATIOS, logits.scales, strict=True):
        loss = loss + ratio * segmentation_loss(scale, target)
    return loss


def segmentation_loss(
    logits: Float[Tensor, "batch class height width"],
    target: Float32[Tensor, "batch class height width"],
) -> Float32[Tensor, ""]:
    """Add binary cross-entropy and soft Dice loss of one output."""
    logits = logits.float()
    probability = logits.sigmoid()
    over = (0, 2, 3)
    shared = (probability * target).sum(dim=over)
    both = probability.sum(dim=over) + target.sum(dim=over)
    dice = (2.0 * shared + SMOOTH) / (both + SMOOTH)
    loss: Tensor = functional.binary_cross_entropy_with_logits(logits, target) + 1.0 - dice.mean()
    return loss
