"""The words of the field, as they are written on disk.

BraTS 2018 to 2020 share one label convention (Menze et al. 2015, doi:10.1109/TMI.2014.2377694; Bakas
et al. 2018, arXiv:1811.02629). Other years give other meanings to the same numbers, so a shard stores
the convention's name and never bare numbers alone.
"""

from typing import Final, Literal

Modality = Literal["t1", "t1ce", "t2", "flair"]
Cohort = Literal["brats2018", "brats2019", "brats2020"]
Grade = Literal["HGG", "LGG", "unknown"]
Split = Literal["train", "test"]

MODALITIES: Final[tuple[Modality, ...]] = ("t1", "t1ce", "t2", "flair")
"""The order of the four MR sequences on disk and in every array."""

COHORTS: Final[tuple[Cohort, ...]] = ("brats2018", "brats2019", "brats2020")
"""The archives that this project reads."""

LABEL_CONVENTION: Final = "brats2018-2020"
"""Name of the label convention below."""

LABELS: Final[dict[str, int]] = {"NEC": 1, "ED": 2, "ET": 4}
"""Voxel values: necrotic and non-enhancing core, oedema, enhancing tumour. 0 is no tumour, 3 is never used."""

REGIONS: Final[dict[str, tuple[int, ...]]] = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}
"""What BraTS scores: enhancing tumour, tumour core, whole tumour, each a union of labels."""

SYNTHETIC_MARK: Final = "SYNTHETIC.txt"
"""A file in an archive's top folder: everything below it was made by `prep phantom`."""

SYNTHETIC_DESCRIPTION: Final = "synthetic: made by prep phantom"
"""The description in the header of each of its volumes; NIfTI-1 has room for 79 bytes."""

UNKNOWN: Final = "unknown"
"""Grade or site of a case of which neither its id nor a name mapping tells more."""
