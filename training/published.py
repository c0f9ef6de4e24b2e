"""The scores that the paper prints, tables 1 to 3, as they stand there.

"Federated brain tumour segmentation using multi-modal information fusion", anonymous authors, under
review. Dice in percent, by methods trained and tested by its authors or taken from elsewhere; the paper
does not say on which cases, or how empty truths are scored. Its averages are copied, not computed: a
few are not the mean of their row.
"""

from dataclasses import dataclass
from typing import Final

from cache_schema.vocabulary import Cohort


@dataclass(frozen=True)
class PublishedRow:
    """A row of tables 1 to 3.

    Attributes:
        method: As the paper calls it, without its reference.
        dice_percent: ET, TC, WT and `Average`.
        parameters_m: In millions.
        gflops: Floating-point operations of one forward pass, in 10^9.
    """

    method: str
    dice_percent: tuple[float, float, float, float]
    parameters_m: float
    gflops: float


@dataclass(frozen=True)
class PublishedTable:
    """One of the tables: its number, and its rows from top to bottom."""

    number: int
    rows: tuple[PublishedRow, ...]


PUBLISHED: Final[dict[Cohort, PublishedTable]] = {
    "brats2018": PublishedTable(
        1,
        (
            PublishedRow("3D U-Net", (73.88, 81.32, 89.71, 81.64), 16.32, 1899.47),
            PublishedRow("Residual 3D U-Net", (72.80, 79.87, 89.89, 80.83), 113.74, 2601.05),
            PublishedRow("TransBTS w/o TTA", (69.36, 77.47, 87.09, 77.97), 14.53, 219.92),
            PublishedRow("TransBTS w/ TTA", (71.05, 81.20, 88.07, 80.11), 32.99, 263.73),
            PublishedRow("UNETR", (71.01, 78.99, 89.77, 79.92), 97.73, 292.18),
            PublishedRow("Swin UNETR", (70.71, 74.24, 89.01, 77.32), 62.65, 194.02),
            PublishedRow("UNETR++", (71.05, 81.20, 88.07, 80.11), 42.65, 139.02),
            PublishedRow("nnFormer", (70.17, 79.76, 89.96, 79.96), 49.66, 372.06),
            PublishedRow("UNetMM (Centralized)", (77.76, 84.56, 84.75, 82.37), 20.5, 69.01),
            PublishedRow("FedUNetMM", (76.93, 84.35, 84.63, 82.25), 20.5, 69.01),
        ),
    ),
    "brats2019": PublishedTable(
        2,
        (
            PublishedRow("3D U-Net", (73.58, 81.31, 89.61, 81.48), 16.32, 1899.47),
            PublishedRow("Residual 3D U-Net", (69.41, 76.55, 89.46, 78.47), 113.74, 2601.05),
            PublishedRow("TransBTS w/o TTA", (70.53, 76.32, 88.81, 78.55), 14.53, 219.92),
            PublishedRow("TransBTS w/ TTA", (70.73, 76.99, 90.13, 79.28), 32.99, 263.73),
            PublishedRow("UNETR", (70.57, 74.22, 89.92, 78.24), 97.73, 292.18),
            PublishedRow("Swin UNETR", (69.99, 71.94, 88.82, 76.25), 62.65, 194.02),
            PublishedRow("UNETR++", (68.57, 76.08, 90.13, 78.26), 42.65, 139.02),
            PublishedRow("nnFormer", (67.59, 75.04, 87.06, 76.56), 49.66, 372.06),
            PublishedRow("UNetMM (Centralized)", (77.23, 84.83, 86.74, 82.93), 20.5, 69.01),
            PublishedRow("FedUNetMM", (76.88, 84.63, 86.38, 82.63), 20.5, 69.01),
        ),
    ),
    "brats2020": PublishedTable(
        3,
        (
            PublishedRow("3D U-Net", (72.49, 78.47, 90.74, 80.57), 16.32, 1899.47),
            PublishedRow("Residual 3D U-Net", (73.72, 78.43, 90.10, 80.75), 113.74, 2601.05),
            PublishedRow("TransBTS w/o TTA", (71.07, 77.02, 89.59, 79.23), 32.99, 263.73),
            PublishedRow("TransBTS w TTA", (73.09, 79.20, 91.12, 81.14), 32.99, 263.73),
            PublishedRow("UNETR", (69.97, 76.60, 88.50, 78.36), 102.12, 179.78),
            PublishedRow("SwinUNETR", (72.18, 79.59, 91.87, 81.21), 62.19, 794.02),
            PublishedRow("UNETR++", (74.30, 77.49, 91.03, 80.94), 42.65, 139.41),
            PublishedRow("nnFormer", (71.45, 79.57, 91.80, 80.94), 149.68, 372.06),
            PublishedRow("UNetMM (Centralized)", (76.56, 83.02, 88.53, 82.70), 20.5, 69.01),
            PublishedRow("FedUNetMM", (75.87, 83.17, 88.44, 82.49), 20.5, 69.01),
        ),
    ),
}
"""By test set. The same figures may stand in two rows, as those of UNETR++ and TransBTS in table 1 do."""
