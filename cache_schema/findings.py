"""Sentences about a case's voxels that a program reads too: how they are made, how they are told."""

from collections.abc import Iterable
from typing import Final

REPAIRED: Final = "repaired: "
_BACKGROUND: Final = "has a background other than 0"
_PARTIAL: Final = "of the head that the other modalities show"


def say_repaired(action: str) -> str:
    """Make the finding that a known fault was mended while reading."""
    return REPAIRED + action


def repairs_in(findings: Iterable[str]) -> tuple[str, ...]:
    """Pick what was mended out of findings, as `say_repaired` was given it."""
    return tuple(f.removeprefix(REPAIRED) for f in findings if f.startswith(REPAIRED))


def say_background(modality: str, share: float) -> str:
    """Make the finding that a modality is not 0 where no brain is.

    Args:
        modality: Which.
        share: Voxels other than 0 over all voxels.
    """
    return f"{modality} {_BACKGROUND}: {share:.0%} of its voxels count as brain"


def say_partial(modality: str, share: float) -> str:
    """Make the finding that a modality shows only a part of the head.

    Args:
        modality: Which.
        share: Its voxels other than 0 over those of the others.
    """
    return f"{modality} covers {share:.0%} {_PARTIAL}"


def spoils_picture(finding: str) -> bool:
    """Tell whether a case with this finding is no good example of its client's scans."""
    return _BACKGROUND in finding or _PARTIAL in finding
