"""What is said of the voxels of real cases."""

import pytest

from pipeline.cohorts import discover
from pipeline.scan import inspect_case


@pytest.mark.parametrize(
    ("case_id", "unusual"),
    [
        ("Brats18_2013_20_1", ["flair covers 66% of the head that the other modalities show"]),
        ("Brats18_2013_3_1", []),  # one modality covers 97 %
        ("Brats18_TCIA01_201_1", []),  # 6 % of the bottom plane is head
    ],
)
def test_no_real_case_has_a_background_and_one_a_part_of_its_head(case_id, unusual, brats):
    (folder,) = (brats / "MICCAI_BraTS_2018_Data_Training").rglob(case_id)
    report = inspect_case(discover([folder]).cases[0], "brats")
    assert report.faults == ()
    voxels = [f for f in report.findings if not f.startswith("no ") and "label voxels" not in f]
    assert voxels == unusual
