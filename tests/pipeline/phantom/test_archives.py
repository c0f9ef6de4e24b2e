"""The three archives on disk, read back with nibabel, which wrote none of these expectations."""

import csv
import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cache_schema.errors import InputError
from pipeline.phantom.archives import FOLDERS, PhantomSummary, brats_affine, write_phantom

SHAPE = (61, 50, 37)
MODALITIES = ("t1", "t1ce", "t2", "flair")
SUFFIXES = (*MODALITIES, "seg")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "new" / "folder"
    written = []
    summary = write_phantom(out, num_patients=12, seed=0, shape=SHAPE, on_case=written.append)
    return out, summary, written


def case_folders(out: Path) -> dict[str, Path]:
    return {p.parent.name: p.parent for p in sorted(out.rglob("*_seg.nii.gz")) if p.parent.is_dir()}


def read_mapping(out: Path, cohort: str) -> list[dict[str, str]]:
    with (out / FOLDERS[cohort] / "name_mapping.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read(folder: Path, suffix: str) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{folder.name}_{suffix}.nii.gz").dataobj)


def all_bytes(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_phantom(tmp_path / name, num_patients=2, seed=seed, shape=(20, 24, 18))
    a, b, c = (all_bytes(tmp_path / name) for name in "abc")
    assert a == b
    images_of_a = {content for name, content in a.items() if name.endswith("nii.gz")}
    assert images_of_a.isdisjoint(c.values())


def test_a_patients_volumes_do_not_depend_on_who_else_is_in_the_cohort(tmp_path):
    for n in (1, 4):
        write_phantom(tmp_path / str(n), num_patients=n, shape=(20, 24, 18))
    (few,) = read_mapping(tmp_path / "1", "brats2019")
    folder = case_folders(tmp_path / "1")[few["BraTS_2019_subject_ID"]]
    same = case_folders(tmp_path / "4")[few["BraTS_2019_subject_ID"]]
    for suffix in SUFFIXES:
        assert (
            next(folder.glob(f"*_{suffix}.*")).read_bytes()
            == next(same.glob(f"*_{suffix}.*")).read_bytes()
        )


def test_twelve_patients_are_nine_eleven_and_twelve_cases(phantom):
    # 12 * 285/369 = 9.27, 12 * 335/369 = 10.89
    _, summary, written = phantom
    assert summary.num_cases == {"brats2018": 9, "brats2019": 11, "brats2020": 12}
    assert summary.num_patients == 12
    assert len(written) == len(set(written)) == 9 + 11 + 12


def test_folders_and_files_are_named_as_in_the_real_archives(phantom):
    out, _, written = phantom
    site_and_number = r"(CBICA_[A-Z]{3}|TCIA\d\d_\d{3}|2013_\d+|TMC_\d{5})_1"
    patterns = {
        f"MICCAI_BraTS_2018_Data_Training/(HGG|LGG)/(Brats18_{site_and_number})",
        f"MICCAI_BraTS_2019_Data_Training/(HGG|LGG)/(BraTS19_{site_and_number})",
        r"MICCAI_BraTS2020_TrainingData/(BraTS20_Training_\d{3})",
    }
    folders = case_folders(out)
    assert sorted(folders) == sorted(written)
    for case_id, folder in folders.items():
        place = folder.relative_to(out).as_posix()
        assert any(re.fullmatch(pattern, place) for pattern in patterns), place
        expected = {f"{case_id}_{suffix}.nii.gz" for suffix in SUFFIXES}
        assert {p.name for p in folder.iterdir()} == expected


def test_every_archive_and_every_volume_says_that_it_is_synthetic(phantom):
    out, _, _ = phantom
    for folder in FOLDERS.values():
        first = (out / folder / "SYNTHETIC.txt").read_text("utf-8").splitlines()[0]
        assert first.startswith("Synthetic data: `prep phantom` made everything in this folder")
    said = {nib.load(p).header["descrip"].item() for p in out.rglob("*.nii.gz")}
    assert said == {b"synthetic: made by prep phantom"}


def test_numbers_of_2020_run_from_one_and_follow_no_order_of_2019(phantom):
    out, _, _ = phantom
    rows = [r for r in read_mapping(out, "brats2020") if r["BraTS_2019_subject_ID"] != "NA"]
    ids = [r["BraTS_2020_subject_ID"] for r in read_mapping(out, "brats2020")]
    assert sorted(ids) == [f"BraTS20_Training_{n:03d}" for n in range(1, 13)]
    by_2019 = sorted(rows, key=lambda r: r["BraTS_2019_subject_ID"])
    by_2020 = sorted(rows, key=lambda r: r["BraTS_2020_subject_ID"])
    assert by_2019 != by_2020


def test_mappings_have_the_real_columns_and_name_every_case_once(phantom):
    out, _, written = phantom
    columns = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,"
    header_2019 = columns + "BraTS_2019_subject_ID\n"
    for cohort, header in (
        ("brats2019", header_2019),
        ("brats2020", header_2019.replace("\n", ",BraTS_2020_subject_ID\n")),
    ):
        text = (out / FOLDERS[cohort] / "name_mapping.csv").read_text()
        assert text.startswith(header)
    rows = read_mapping(out, "brats2020")
    assert len(rows) == 12
    mapped = [r[f"BraTS_{year}_subject_ID"] for r in rows for year in (2018, 2019, 2020)]
    assert sorted(name for name in mapped if name != "NA") == sorted(written)


def test_cohorts_are_nested_and_both_mappings_say_the_same(phantom):
    out, _, _ = phantom
    rows = read_mapping(out, "brats2020")
    assert not [
        r for r in rows if r["BraTS_2018_subject_ID"] != "NA" and r["BraTS_2019_subject_ID"] == "NA"
    ]
    in_2019 = [r for r in rows if r["BraTS_2019_subject_ID"] != "NA"]
    shorter = [{k: v for k, v in r.items() if k != "BraTS_2020_subject_ID"} for r in in_2019]
    assert read_mapping(out, "brats2019") == shorter


def test_the_grade_in_the_mapping_is_the_folder_of_the_case(phantom):
    out, _, _ = phantom
    folders = case_folders(out)
    rows = read_mapping(out, "brats2019")
    grades = {r["Grade"] for r in rows}
    assert grades == {"HGG", "LGG"}
    for row in rows:
        assert folders[row["BraTS_2019_subject_ID"]].parent.name == row["Grade"]


def test_a_patient_has_the_same_voxels_in_every_cohort_and_nobody_elses(phantom):
    out, _, _ = phantom
    folders = case_folders(out)
    images = set()
    for row in read_mapping(out, "brats2020"):
        names = [row[f"BraTS_{year}_subject_ID"] for year in (2018, 2019, 2020)]
        cases = [folders[name] for name in names if name != "NA"]
        for suffix in SUFFIXES:
            contents = {(c / f"{c.name}_{suffix}.nii.gz").read_bytes() for c in cases}
            assert len(contents) == 1
            images |= contents
    assert len(images) == 12 * 5


def test_the_summary_counts_the_cases_without_enhancing_tumour(phantom):
    out, summary, _ = phantom
    without = [f for f in case_folders(out).values() if not (read(f, "seg") == 4).any()]
    assert summary.num_cases_without_et == len(without) > 0


def test_headers_are_1_mm_lps_int16_with_the_geometry_asked_for(phantom):
    out, _, _ = phantom
    folder = next(iter(case_folders(out).values()))
    for suffix in SUFFIXES:
        image = nib.load(folder / f"{folder.name}_{suffix}.nii.gz")
        assert image.shape == SHAPE
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_array_equal(image.affine[:, 3], [0, 49, 0, 1])
        assert image.header.get_xyzt_units()[0] == "mm"
        assert int(image.header["sform_code"]) in {1, 2}
        assert image.get_data_dtype() == (np.uint8 if suffix == "seg" else np.int16)


def test_the_affine_at_full_size_is_that_of_brats():
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(brats_affine((240, 240, 155)), expected)


def test_gzip_headers_hold_neither_a_time_nor_a_name(phantom):
    out, _, _ = phantom
    for path in out.rglob("*.nii.gz"):
        content = path.read_bytes()
        assert content[3:8] == bytes(5)  # flags (no name), modification time
        assert len(gzip.decompress(content)) >= np.prod(SHAPE)


def test_images_are_zero_outside_one_brain_and_tumours_lie_inside_it(phantom):
    out, _, _ = phantom
    for folder in case_folders(out).values():
        brain = read(folder, "t1") > 0
        for modality in MODALITIES:
            image = read(folder, modality)
            assert image.min() == 0
            np.testing.assert_array_equal(image > 0, brain)
        labels = read(folder, "seg")
        assert set(np.unique(labels)) <= {0, 1, 2, 4}
        assert not labels[~brain].any()


def test_one_patient_is_in_all_three_cohorts(tmp_path):
    summary = write_phantom(tmp_path, num_patients=1, shape=(16, 16, 16))
    assert summary == PhantomSummary({"brats2018": 1, "brats2019": 1, "brats2020": 1}, 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_patients": 0}, r"^--patients 0: ask for at least 1$"),
        ({"seed": -1}, r"^--seed -1: give 0 or a positive number$"),
        ({"shape": (64, 15, 40)}, r"^--shape 64x15x40: make each side at least 16 voxels$"),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_name_of_its_option(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_phantom(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(
        InputError, match=r"^OUT .* is not empty: name a folder that is new or empt"
    ):
        write_phantom(tmp_path, num_patients=1, shape=(16, 16, 16))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(
        InputError, match=r"^OUT .*a cannot be written \(No space left on device\);"
    ):
        write_phantom(tmp_path / "a", num_patients=1, shape=(16, 16, 16))


def interrupted(out, *, after, **options):
    """Begin a phantom and end after some cases."""

    def stop(_):
        nonlocal after
        after -= 1
        if after == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(out, shape=(16, 16, 16), on_case=stop, **options)


def contents(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_the_same_call_goes_on_with_a_phantom_and_makes_what_is_there_no_more(tmp_path):
    write_phantom(tmp_path / "whole", num_patients=3, shape=(16, 16, 16))
    out = tmp_path / "out"
    interrupted(out, after=3, num_patients=3)
    kept = next(out.rglob("*_t1.nii.gz"))
    inode = kept.stat().st_ino
    lacking = max(out.rglob("*_seg.nii.gz"))
    lacking.unlink()
    leftover = kept.parent / f".{kept.name}.12345678.partial"
    leftover.mkdir()
    (leftover / kept.name).write_bytes(b"half")
    told = []
    write_phantom(out, num_patients=3, shape=(16, 16, 16), on_case=told.append)
    assert contents(out) == contents(tmp_path / "whole")
    assert not leftover.exists()
    assert len(told) == len(list(out.rglob("*_seg.nii.gz")))
    assert lacking.parent == kept.parent or kept.stat().st_ino == inode


@pytest.mark.parametrize("change", ["seed", "foreign", "deep", "link", "finished"])
def test_only_what_the_same_call_left_is_gone_on_with(change, tmp_path):
    out = tmp_path / "out"
    interrupted(out, after=1, num_patients=2)
    options = {"seed": 1} if change == "seed" else {}
    if change == "foreign":
        (out / "mine.txt").write_text("kept")
    if change == "deep":
        (next(out.rglob("*_t1.nii.gz")).parent / "mine.txt").write_text("kept")
    if change == "link":
        file = next(out.rglob("*_t1.nii.gz"))
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
    if change == "finished":
        write_phantom(out, num_patients=2, shape=(16, 16, 16))
    before = contents(out)
    with pytest.raises(InputError, match=r"^OUT .* is not empty: name a folder that is new or"):
        write_phantom(out, num_patients=2, shape=(16, 16, 16), **options)
    assert contents(out) == before


def test_a_file_is_refused_as_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^OUT .*file is a file: name a folder"):
        write_phantom(tmp_path / "file", num_patients=1)
