"""A network of three dimensions on a whole volume: windows that overlap, from MONAI."""

import warnings
from importlib.util import find_spec
from typing import Final, cast

from jaxtyping import Float32
from torch import Tensor, nn

from cache_schema.errors import InputError

OVERLAP: Final = 0.5
"""Share of a window's side that the next one covers again."""


def slide(
    model: nn.Module,
    image: Float32[Tensor, "1 4 depth height width"],
    patch: tuple[int, int, int],
) -> Float32[Tensor, "1 3 depth height width"]:
    """Compute the probability of every plane at every voxel.

    Where windows overlap, their probabilities are averaged, with weights that fall off from the middle
    of a window like a Gaussian, as in nnU-Net, Isensee et al. (2021), doi:10.1038/s41592-020-01008-z. A
    volume that is smaller than a window is put into its middle.

    Args:
        model: In evaluation, on the device of the image.
        image: A volume, normalised, background 0.
        patch: Size of a window.

    Raises:
        InputError: If MONAI is not installed.
    """
    if find_spec("monai") is None:
        raise InputError(
            "a network of three dimensions needs MONAI: python -m pip install 'fedunetmm[models]'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what MONAI imports
        from monai.inferers.utils import sliding_window_inference

    def probability(window: Tensor) -> Tensor:
        found: Tensor = model(window).final.sigmoid().float()
        return found

    whole = sliding_window_inference(
        image, patch, sw_batch_size=1, predictor=probability, overlap=OVERLAP, mode="gaussian"
    )
    return cast("Tensor", whole)
