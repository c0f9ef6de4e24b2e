"""The full-size cases that every benchmark runs on."""

from pathlib import Path

from pipeline.cohorts import SEGMENTATION, Case, discover
from pipeline.identity import identify
from pipeline.phantom.archives import write_phantom


def find_cases(scratch: Path, real: str | None) -> tuple[str, tuple[Case, ...]]:
    """Take the real scans if their folder is given, else make phantoms of 240 x 240 x 155 voxels.

    Args:
        scratch: Where phantoms go.
        real: Folder of real archives, or None.

    Returns:
        What the cases are, and up to four of them.
    """
    root = Path(real) if real else scratch / "phantom"
    if not real:
        write_phantom(root, num_patients=2)
    cases = [case for case in identify(discover([root])) if SEGMENTATION in case.files]
    return "real" if real else "phantom", tuple(cases[:4])
