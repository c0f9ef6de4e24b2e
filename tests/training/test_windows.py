"""Windows over a whole volume: every voxel once in the mean, whatever the sizes."""

import pytest
import torch
from torch import nn

from cache_schema.errors import InputError
from training.models.logits import Logits
from training.windows import slide


class Pointwise(nn.Module):
    """Looks at a voxel alone, so that windows cannot matter, and counts what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(
            torch.tensor([[0.3, -1.0, 2.0, 0.1], [1.0, 0, 0, 0], [0, 0, 0, -2.0]])
        )
        self.shapes = []

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        return Logits(torch.einsum("kc,bczyx->bkzyx", self.weight, image))


@pytest.mark.parametrize("shape", [(7, 20, 33), (16, 16, 16), (40, 5, 18)])
def test_a_network_that_sees_single_voxels_gives_what_it_gives_of_the_whole_volume(shape):
    image = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(0))
    model = Pointwise()
    expected = model(image).final.sigmoid()
    model.shapes.clear()
    with torch.inference_mode():
        found = slide(model, image, (16, 16, 16))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert {each[2:] for each in model.shapes} == {(16, 16, 16)}


def test_windows_overlap_by_half():
    model = Pointwise()
    with torch.inference_mode():
        slide(model, torch.zeros(1, 4, 16, 16, 32), (16, 16, 16))
    assert len(model.shapes) == 3  # from column 0, 8 and 16


def test_the_middle_of_a_window_counts_more_than_its_edge():
    class Counter(nn.Module):
        """Calls everything tumour in its second window alone."""

        calls = 0

        def forward(self, image):
            self.calls += 1
            sign = 50.0 if self.calls == 2 else -50.0
            return Logits(torch.full((1, 3, *image.shape[2:]), sign))

    with torch.inference_mode():
        found = slide(Counter(), torch.zeros(1, 4, 16, 16, 32), (16, 16, 16))[0, 0, 8, 8]
    # column 16 is the middle of the window from 8, and the edge of the others
    assert found[16] > 0.9
    assert found[9] < 0.1
    assert found[2] < 1e-9


def test_without_monai_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("training.windows.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs MONAI: .*fedunetmm\[models\]"):
        slide(Pointwise(), torch.zeros(1, 4, 8, 8, 8), (16, 16, 16))
