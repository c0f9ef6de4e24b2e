"""Slices for a contact sheet: the right case, the right slice, the right way up."""

from dataclasses import replace

import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.findings import say_background, say_partial
from cache_schema.manifest import CaseRecord, LabelVoxels, ShardRecord, count_leakage, read_manifest
from cache_schema.shard import CaseSlices, ShardReader, ShardWriter, Slice, digest
from pipeline.specimens import (
    LABEL_COLOURS,
    MAX_SPECIMENS,
    Specimen,
    choose_cases,
    crop,
    paint,
    panels,
    read_specimens,
    window,
)

SHARD = "clients/client-00/shard-000.h5"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
ALL = (True, True, True, True)


def record(
    name,
    *,
    patient=None,
    cohort="brats2020",
    client=0,
    tumour=0,
    nec=0,
    et=0,
    present=ALL,
    findings=(),
):
    return CaseRecord(
        case_id=name,
        patient_id=patient or name,
        cohort=cohort,
        grade="HGG",
        site="TMC",
        split="test" if client is None else "train",
        client=client,
        shard=SHARD,
        key="0" * 64,
        num_slices=3,
        label_voxels=LabelVoxels(NEC=nec, ED=tumour, ET=et),
        present=present,
        findings=findings,
        attributes={},
    )


@pytest.fixture
def manifest_of(small_cache):
    """Gives the small cache's manifest with other cases in it."""
    manifest = read_manifest(small_cache)

    def replaced(*cases):
        leakage = count_leakage(cases, "paper")
        return manifest.model_copy(update={"cases": cases, "leakage": leakage})

    return replaced


@pytest.fixture
def written(manifest_of, tmp_path):
    """Writes the cases of `write_case` and gives the manifest of a cache that holds nothing else."""

    def write(affine, present=ALL, tumour=True):
        write_case(tmp_path, affine, present, tumour)
        labels = {"nec": 2, "tumour": 1, "et": 1} if tumour else {}
        cases = record("a", present=present), record("b", present=present, **labels)
        path = tmp_path / SHARD
        shard = ShardRecord(path=SHARD, rows=6, bytes=path.stat().st_size, sha256=digest(path))
        about = {"shards": (shard,), "fingerprint": "f", "plane": (5, 4)}
        return manifest_of(*cases).model_copy(update=about)

    return write


def chosen(manifest) -> list[tuple[str, str]]:
    return [(owner, case.case_id) for owner, case in choose_cases(manifest)]


def test_the_case_in_the_middle_by_tumour_volume_is_chosen(manifest_of):
    sizes = {"a": 900, "b": 10, "c": 30}
    manifest = manifest_of(*(record(name, tumour=size) for name, size in sizes.items()))
    assert chosen(manifest) == [("client 0", "c")]


def test_every_client_and_test_set_shows_a_case_of_another_patient_if_there_is_one(manifest_of):
    manifest = manifest_of(
        record("a19", patient="a", cohort="brats2019", client=None),
        record("a20", patient="a", client=None),
        record("b20", patient="b", client=None),
        record("c", client=2),
        record("d", client=10),
    )
    assert chosen(manifest) == [
        ("client 2", "c"),
        ("client 10", "d"),
        ("test brats2019", "a19"),
        ("test brats2020", "b20"),
    ]


def test_a_patient_is_shown_again_where_there_is_no_other(manifest_of):
    manifest = manifest_of(
        record("a18", patient="a", cohort="brats2018"), record("a20", patient="a", client=None)
    )
    assert chosen(manifest) == [("client 0", "a18"), ("test brats2020", "a20")]


AIR = (say_background("t1", 1.0),)
PART = ("no ET", say_partial("flair", 0.66))


@pytest.mark.parametrize("findings", [AIR, PART])
def test_a_case_with_a_background_or_a_part_of_a_head_is_not_shown(findings, manifest_of):
    manifest = manifest_of(
        record("a", tumour=10),
        record("b", tumour=20, findings=findings),  # the one in the middle
        record("c", tumour=30, findings=("no ET",)),
    )
    assert chosen(manifest) == [("client 0", "c")]


def test_it_is_shown_where_there_is_no_other_and_after_a_patient_shown_already(manifest_of):
    manifest = manifest_of(
        record("a18", patient="a", cohort="brats2018", client=1),
        record("b", client=2, findings=AIR),
        record("a20", patient="a", client=None),
        record("c20", client=None, findings=PART),
    )
    assert chosen(manifest) == [
        ("client 1", "a18"),
        ("client 2", "b"),
        ("test brats2020", "a20"),
    ]


def test_of_many_clients_some_are_passed_over_at_equal_steps(manifest_of):
    clients = [record(f"case-{n}", client=n) for n in range(23)]
    owners = [owner for owner, _ in chosen(manifest_of(*clients, record("t", client=None)))]
    assert len(owners) == MAX_SPECIMENS
    assert owners == [
        *(f"client {n}" for n in [0, 2, 4, 7, 9, 11, 13, 15, 18, 20, 22]),
        "test brats2020",
    ]


def write_case(cache, affine, present=ALL, tumour=True):
    """Write a case of three slices: planes of 5 x 4 voxels, all brain, z from 6; slice 7 has most tumour.

    In slice 7 the voxel (4, 0) is bright in FLAIR, and (0, 3) is ET.
    """
    image = np.full((3, 4, 5, 4), 0.5, np.float16)
    image[1, 3, 4, 0] = 9.0
    image[:, [not p for p in present]] = 0
    label = np.zeros((3, 5, 4), np.uint8)
    if tumour:
        label[1, 0, 3] = 4
        label[1, 1, 1:3] = 1
        label[2, 2, 2] = 2
    plain = Slice(np.ones((4, 5, 4), np.float16), np.zeros((5, 4), np.uint8))
    path = cache / SHARD
    with ShardWriter(path, plane=(5, 4), fingerprint="f", client=0) as writer:
        for name in ("a", "b"):  # the case of interest does not begin at row 0
            writer.append(
                CaseSlices(
                    case_id=name,
                    patient_id=name,
                    cohort="brats2020",
                    grade="HGG",
                    site="TMC",
                    z=np.array([6, 7, 8], np.int32),
                    slices=list(map(Slice, image, label)) if name == "b" else [plain] * 3,
                    affine=affine,
                    shape=(5, 4, 9),
                    mean=np.zeros(4),
                    std=np.ones(4),
                    present=present,
                    key="0" * 64,
                    findings="",
                )
            )


def test_the_slice_with_most_tumour_is_read_front_up_and_patients_right_left(tmp_path, written):
    (specimen,) = read_specimens(tmp_path, written(LPS))
    assert (specimen.z, specimen.image.shape, specimen.label.shape) == (7, (4, 4, 5), (4, 5))
    # i runs to the patient's left and j to the back: (4, 0) is front left, top right in the picture.
    assert np.argwhere(specimen.image[3] == 9).tolist() == [[0, 4]]
    assert np.argwhere(specimen.label == 4).tolist() == [[3, 0]]


def test_axes_that_run_to_the_right_and_front_are_turned(tmp_path, written):
    (specimen,) = read_specimens(tmp_path, written(RAS))
    assert np.argwhere(specimen.image[3] == 9).tolist() == [[3, 0]]
    assert np.argwhere(specimen.label == 4).tolist() == [[0, 4]]


def test_heads_of_other_axes_are_cut_to_one_window():
    image, label = np.zeros((4, 6, 9), np.float32), np.zeros((6, 9), np.uint8)
    lying = Specimen("client 0", record("a"), 1, 1.0, image, label)
    upright = replace(lying, image=image.swapaxes(1, 2), label=np.zeros((9, 6), np.uint8))
    lying.label[3, 8], upright.label[8, 4] = 4, 4
    cut = crop([lying, upright], margin=0)
    assert [each.label.shape for each in cut] == [(6, 5), (6, 5)]  # rows 3 to 8, columns 4 to 8
    assert [np.argwhere(each.label).tolist() for each in cut] == [[[0, 4]], [[5, 0]]]
    assert [each.image.shape for each in cut] == [(4, 6, 5), (4, 6, 5)]


def test_voxels_that_are_not_square_keep_their_shape(tmp_path, written):
    (specimen,) = read_specimens(tmp_path, written(np.diag([-2.0, -3.0, 1.0, 1.0])))
    assert specimen.aspect == 1.5


def test_a_case_without_tumour_shows_its_middle_slice(tmp_path, written):
    (specimen,) = read_specimens(tmp_path, written(LPS, tumour=False))
    assert specimen.z == 7


def test_no_other_slice_is_decoded(small_cache, monkeypatch):
    read = []
    for name in ("images", "labels"):
        original = getattr(ShardReader, name)

        def watched(self, rows, original=original):
            read.append(rows)
            return original(self, rows)

        monkeypatch.setattr(ShardReader, name, watched)
    specimens = read_specimens(small_cache, read_manifest(small_cache))
    assert [s.owner for s in specimens] == [
        "client 0",
        "client 1",
        "test brats2018",
        "test brats2019",
        "test brats2020",
    ]
    assert [len(rows) for rows in read] == [1] * 10


def test_a_shard_that_lacks_its_case_is_named(tmp_path, written):
    manifest = written(LPS)
    cases = (*manifest.cases, record("c", tumour=9), record("d", tumour=9))
    with pytest.raises(
        InputError, match=r"shard-000\.h5 .*: c is only in the manifest; run `prep verify --deep`"
    ):
        read_specimens(tmp_path, manifest.model_copy(update={"cases": cases}))


def test_an_absent_modality_has_no_picture_and_labels_lie_over_one_that_is_there(tmp_path, written):
    present = (True, False, True, False)
    (specimen,) = read_specimens(tmp_path, written(LPS, present))
    pictures = dict(panels(specimen))
    assert list(pictures) == ["T1", "T1CE", "T2", "FLAIR", "labels"]
    assert [name for name, picture in pictures.items() if picture is None] == ["T1CE", "FLAIR"]
    # T2 is 0.5 everywhere, the darkest grey of a brain; FLAIR would be black.
    np.testing.assert_allclose(pictures["labels"][0, 0], 0.1)


def test_grey_spans_the_percentiles_of_the_brain_over_a_black_background():
    image = np.zeros((1, 1002), np.float32)
    image[0, 1:] = np.arange(1001) - 500.0
    grey = window(image, np.arange(1002)[None] > 0)
    assert grey[0, 0] == 0.0
    # Of -500 to 500 the percentiles 0.5 and 99.5 are -495 and 495; 0 is brain here, in the middle.
    assert grey[0, 1 + 5] == pytest.approx(0.1)
    assert grey[0, 1] == pytest.approx(0.1)
    assert grey[0, 1 + 500] == pytest.approx(0.55)
    assert (grey[0, 1 + 994] < 1.0, grey[0, 1 + 995]) == (True, 1.0)


def test_labels_are_painted_half_transparent_in_their_colours():
    label = np.array([[0, 1, 2, 4]], np.uint8)
    painted = paint(np.full((1, 4), 0.5), label)
    assert painted[0, 0].tolist() == [0.5, 0.5, 0.5]
    # #E69F00 is 230, 159, 0: 0.4 * 0.5 + 0.6 * 230 / 255, and so on.
    np.testing.assert_allclose(painted[0, 2], [0.741176, 0.574118, 0.2], atol=1e-6)
    assert len({*map(tuple, painted[0].tolist())}) == 1 + len(LABEL_COLOURS)


def test_all_specimens_are_cut_to_one_window_that_holds_every_brain(tmp_path, written):
    (whole,) = read_specimens(tmp_path, written(LPS))

    def only(row, column):
        image = np.zeros((4, 11, 13), np.float32)
        image[2, row, column] = 1.0
        return type(whole)("client 0", whole.case, 7, 1.0, image, np.zeros((11, 13), np.uint8))

    first, second = crop([only(3, 6), only(5, 9)], margin=1)
    assert first.image.shape == (4, 5, 6)  # rows 2 to 6, columns 5 to 10
    assert np.argwhere(first.image[2]).tolist() == [[1, 1]]
    assert np.argwhere(second.image[2]).tolist() == [[3, 4]]
    assert second.label.shape == (5, 6)
