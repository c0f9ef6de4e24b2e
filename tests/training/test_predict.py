import numpy as np
import torch
from torch import nn

from training.models.logits import SCALE_RATIOS, Logits
from training.predict import predict_labels


class BrightIsOedema(nn.Module):
    """Calls a pixel oedema where FLAIR is above 1; notes the size of what it was shown."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.shapes = []

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        bright = (image[:, 3:] > 1).float() * 20 - 10
        planes = torch.cat((torch.full_like(bright, -10), bright, torch.full_like(bright, -10)), 1)
        return Logits(planes, (planes,) * len(SCALE_RATIOS))


def test_slices_are_padded_for_the_network_and_come_back_at_their_own_size():
    image = np.random.default_rng(0).normal(size=(5, 4, 40, 33)).astype(np.float16)
    model = BrightIsOedema()
    label = predict_labels(model, image, "labels", batch_size=2)
    assert model.shapes == [(2, 4, 64, 64), (2, 4, 64, 64), (1, 4, 64, 64)]
    np.testing.assert_array_equal(label, np.where(image[:, 3] > 1, 2, 0))
    assert label.dtype == np.uint8
    assert not model.training
