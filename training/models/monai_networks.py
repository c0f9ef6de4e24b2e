"""The networks that MONAI has, behind our interface; it is imported only when one is built.

MONAI: Cardoso et al. (2022), arXiv:2211.02701. The two U-Nets leave out the biases in front of a
normalisation, which takes them away again: they would be parameters without a gradient.
"""

import io
import math
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor, nn

from cache_schema.errors import InputError
from cache_schema.vocabulary import MODALITIES
from training.models.logits import Logits
from training.models.patch import refuse, require_size

NUM_MODALITIES: Final = len(MODALITIES)

EINOPS_NEEDED: Final = ("UNETR", "SwinUNETR")
"""Classes for which MONAI imports einops, and would say so only when it builds one."""

PATCH: Final = (128, 128, 128)
"""The crop of BraTS volumes that these networks are published with: depth, height, width."""

TINY: Final[dict[str, dict[str, Any]]] = {
    "unet3d": {"channels": (4, 4, 6, 8, 10)},
    "resunet3d": {"channels": (4, 4, 6, 8, 10)},
    "unetr": {"feature_size": 2, "hidden_size": 8, "mlp_size": 16, "num_heads": 2},
    "swinunetr": {
        "feature_size": 12,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 3, 4),
        "norm_groups": 4,
    },
}
"""Options that make each network small enough for tests, with patches of 32 x 32 x 32 voxels.

Twelve features are the fewest that MONAI's Swin UNETR takes: 3.8 million parameters; the others
have less than 200 thousand.
"""


class MonaiNetwork(nn.Module):
    """A network of MONAI that answers like ours.

    Args:
        network: Maps an image to logits of the same size.
        patch: Depth, height and width of the images.
    """

    def __init__(self, network: nn.Module, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.patch = patch

    def forward(self, image: Float[Tensor, "batch 4 depth height width"]) -> Logits:
        """Segment patches.

        Args:
            image: Modalities in the order of `MODALITIES`, each z-scored.

        Raises:
            ValueError: If the image has another size.
        """
        require_size(image, self.patch)
        return Logits(final=self.network(image))


def unet3d(
    *,
    num_classes: int,
    patch: tuple[int, int, int] = PATCH,
    channels: tuple[int, int, int, int, int] = (64, 64, 128, 256, 328),
) -> MonaiNetwork:
    """Build the 3D U-Net.

    Çiçek et al. (2016), arXiv:1606.06650. MONAI's `BasicUNet` has its parts: two convolutions with
    BatchNorm and ReLU a level, max pooling, transposed convolutions, joined skip connections. It
    always has five levels where the paper has four, so what the finer levels leave of the 16.32
    million parameters that comparisons quote goes to the fifth.

    Args:
        num_classes: Planes of the output.
        patch: Depth, height and width in voxels.
        channels: Features of the five levels, fine to coarse.

    Raises:
        InputError: If the patch or an option does not fit, or MONAI is missing.
    """
    _check_patch("unet3d", patch, stride=16, fewest=2)
    network = _build(
        "unet3d",
        "BasicUNet",
        spatial_dims=3,
        out_channels=num_classes,
        features=(*channels, channels[0]),
        act="relu",
        norm="batch",
        bias=False,
    )
    return MonaiNetwork(network, patch)


def resunet3d(
    *,
    num_classes: int,
    patch: tuple[int, int, int] = PATCH,
    channels: tuple[int, int, int, int, int] = (64, 144, 288, 576, 1136),
) -> MonaiNetwork:
    """Build the residual 3D U-Net.

    Raza et al. (2023), doi:10.1016/j.bspc.2022.103861: a residual network as encoder, the decoder of
    the U-Net. That is what residual blocks make of MONAI's `DynUNet`, which has them in its encoder
    only. Comparisons quote 113.74 million parameters, 64 features at full size and five levels; the
    coarser levels are as wide as it takes.

    Args:
        num_classes: Planes of the output.
        patch: Depth, height and width in voxels.
        channels: Features of the five levels, fine to coarse.

    Raises:
        InputError: If the patch or an option does not fit, or MONAI is missing.
    """
    _check_patch("resunet3d", patch, stride=16, fewest=2)
    network = _build(
        "resunet3d",
        "DynUNet",
        spatial_dims=3,
        out_channels=num_classes,
        kernel_size=(3, 3, 3, 3, 3),
        strides=(1, 2, 2, 2, 2),
        upsample_kernel_size=(2, 2, 2, 2),
        filters=channels,
        res_block=True,
    )
    return MonaiNetwork(network, patch)


def unetr(
    *,
    num_classes: int,
    patch: tuple[int, int, int] = PATCH,
    feature_size: int = 16,
    hidden_size: int = 768,
    mlp_size: int = 3072,
    num_heads: int = 12,
) -> MonaiNetwork:
    """Build UNETR, a vision transformer whose layers feed a convolutional decoder.

    Hatamizadeh et al. (2022), arXiv:2103.10504.

    Args:
        num_classes: Planes of the output.
        patch: Depth, height and width in voxels; there is a position embedding for each token of it.
        feature_size: Features of the decoder at full size.
        hidden_size: Length of a token.
        mlp_size: Width of the hidden layers between the attention layers.
        num_heads: Heads of each attention layer, a divisor of `hidden_size`.

    Raises:
        InputError: If the patch or an option does not fit, or MONAI or einops is missing.
    """
    _check_patch("unetr", patch, stride=16, fewest=1)
    network = _build(
        "unetr",
        "UNETR",
        out_channels=num_classes,
        img_size=patch,
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_size,
        num_heads=num_heads,
    )
    for block in network.vit.blocks:
        # Attention to a second sequence, which a UNETR lacks: 28.3 M parameters that no gradient reaches,
        # built in every block by MONAI 1.5; only their norms by 1.6.
        block.cross_attn = nn.Identity()
        block.norm_cross_attn = nn.Identity()
    return MonaiNetwork(network, patch)


def swinunetr(
    *,
    num_classes: int,
    patch: tuple[int, int, int] = PATCH,
    feature_size: int = 48,
    depths: tuple[int, int, int, int] = (2, 2, 2, 2),
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24),
    norm_groups: int = 0,
    use_checkpoint: bool = False,
) -> MonaiNetwork:
    """Build Swin UNETR, an encoder of shifted-window attention with a convolutional decoder.

    Hatamizadeh et al. (2022), arXiv:2201.01266.

    Args:
        num_classes: Planes of the output.
        patch: Depth, height and width in voxels.
        feature_size: Features at full size, a multiple of 12.
        depths: Attention layers of the four stages.
        num_heads: Heads of each stage, divisors of 1, 2, 4 and 8 times `feature_size`.
        norm_groups: 0 for instance normalisation, as published; else groups of a group
            normalisation, which also takes patches that are one voxel at the coarsest level.
        use_checkpoint: Compute the attention layers twice in training instead of keeping what is in
            them, which needs less memory.

    Raises:
        InputError: If the patch or an option does not fit, or MONAI or einops is missing.
    """
    _check_patch("swinunetr", patch, stride=32, fewest=1 if norm_groups else 2)
    if any(feature_size * 2**stage % heads for stage, heads in enumerate(num_heads)):
        raise InputError(
            "--model-option num_heads: swinunetr needs divisors of 1, 2, 4 and 8 times "
            f"feature_size={feature_size}, not {num_heads}"
        )
    network = _build(
        "swinunetr",
        "SwinUNETR",
        out_channels=num_classes,
        feature_size=feature_size,
        depths=depths,
        num_heads=num_heads,
        norm_name=("group", {"num_groups": norm_groups}) if norm_groups else "instance",
        use_checkpoint=use_checkpoint,
    )
    return MonaiNetwork(network, patch)


def _check_patch(model: str, patch: tuple[int, int, int], *, stride: int, fewest: int) -> None:
    """Refuse sides that are no multiples, and too few voxels at the coarsest level to normalise."""
    coarsest = math.prod(side // stride for side in patch)
    if any(side % stride for side in patch) or coarsest < fewest:
        larger = f", at least one of them {fewest * stride} or more" if fewest > 1 else ""
        raise refuse(model, patch, f"multiples of {stride}{larger}")


def _build(model: str, class_name: str, **options: Any) -> Any:  # noqa: ANN401 - MONAI's own class
    try:
        if class_name in EINOPS_NEEDED:
            import_module("einops")
        network = getattr(import_module("monai.networks.nets"), class_name)
    except ModuleNotFoundError as error:
        package = (error.name or "monai").partition(".")[0]
        raise InputError(
            f"--model {model} needs the package {package}: "
            "python -m pip install 'fedunetmm[models]'"
        ) from error
    with redirect_stdout(io.StringIO()):  # MONAI 1.5 prints the widths of a U-Net
        return network(in_channels=NUM_MODALITIES, **options)
