"""Writes the golden cache of manifest version 2: `python tests/cache_schema/write_golden.py FOLDER`.

Run once for a format version and committed; later releases must read those very files. Every voxel
follows from a formula, so that a reader's result can be checked without the writer.
"""

import sys
from pathlib import Path
from typing import Final

import numpy as np

from cache_schema.manifest import (
    CaseRecord,
    ClientRecord,
    CohortRecord,
    LabelVoxels,
    Manifest,
    Move,
    Options,
    PartitionRecord,
    Quarantined,
    Repair,
    ShardRecord,
    count_leakage,
    write_manifest,
)
from cache_schema.shard import CaseSlices, ShardWriter, Slice, digest
from cache_schema.vocabulary import MODALITIES

PLANE: Final = (16, 18)
SYNTHETIC: Final = "BraTS20_Training_003"
FINGERPRINT: Final = "f" * 64
SHARDS: Final = {
    "clients/client-00/shard-000.h5": ("BraTS19_CBICA_AAB_1", "Brats18_CBICA_AAB_1"),
    "clients/client-01/shard-000.h5": ("BraTS20_Training_003",),
    "test/brats2019/shard-000.h5": ("BraTS19_TCIA10_101_1",),
}
CLIENTS: Final = {
    "clients/client-00/shard-000.h5": 0,
    "clients/client-01/shard-000.h5": 1,
    "test/brats2019/shard-000.h5": None,
}
# Number, patient, cohort, grade, site, kept slices, source shape, modalities, findings.
CASES: Final = {
    "BraTS19_CBICA_AAB_1": (
        1,
        "CBICA_AAB_1",
        "brats2019",
        "HGG",
        "CBICA",
        (3, 4, 6),
        (16, 18, 9),
        (True, True, True, True),
        (),
    ),
    "Brats18_CBICA_AAB_1": (
        2,
        "CBICA_AAB_1",
        "brats2018",
        "HGG",
        "CBICA",
        (2, 3),
        (13, 17, 9),
        (True, True, True, True),
        ("no ET", "2 label voxels outside the brain"),
    ),
    "BraTS20_Training_003": (
        3,
        "BraTS20_Training_003",
        "brats2020",
        "unknown",
        "Zürich",
        (0, 5),
        (16, 18, 9),
        (True, True, True, True),
        (),
    ),
    "BraTS19_TCIA10_101_1": (
        4,
        "TCIA10_101_1",
        "brats2019",
        "LGG",
        "TCIA10",
        (7,),
        (16, 18, 9),
        (True, False, True, True),
        ("no ET",),
    ),
}


def case_slices(case_id: str) -> CaseSlices:
    """Make one case: voxel (h, w) of modality m at slice z is n + m/4 + z/8 + h/64 in a rectangle.

    n is the case's number. The rectangle is [4, 10) x [5, 12); the corner of it is labelled.
    """
    number, patient, cohort, grade, site, kept, shape, present, findings = CASES[case_id]
    z = np.array(kept, np.int32)
    image = np.zeros((len(z), 4, *PLANE), np.float16)
    for modality in range(4):
        if present[modality]:
            ramp = number + modality / 4 + z[:, None, None] / 8 + np.arange(4, 10)[:, None] / 64
            image[:, modality, 4:10, 5:12] = np.broadcast_to(ramp, (len(z), 6, 7))
    label = np.zeros((len(z), *PLANE), np.uint8)
    label[:, 4:6, 5:8] = 2
    label[:, 4, 5:7] = 1
    if "no ET" not in findings:
        label[0, 5, 7] = 4
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1
    return CaseSlices(
        case_id=case_id,
        patient_id=patient,
        cohort=cohort,
        grade=grade,
        site=site,
        z=z,
        slices=list(map(Slice, image, label)),
        affine=affine,
        shape=shape,
        mean=np.where(present, 100.0 * number + np.arange(4), 0.0),
        std=np.where(present, 10.0 * number + np.arange(4), 1.0),
        present=present,
        key=f"{number:064x}",
        findings="\n".join(findings),
    )


def write_golden(cache: Path) -> None:
    """Write the golden cache into a folder."""
    shards, cases = [], []
    for path, case_ids in SHARDS.items():
        client = CLIENTS[path]
        with ShardWriter(
            cache / path, plane=PLANE, fingerprint=FINGERPRINT, client=client
        ) as writer:
            for case_id in case_ids:
                prepared = case_slices(case_id)
                writer.append(prepared)
                cases.append(_record(prepared, path, client))
        rows = sum(case.num_slices for case in cases if case.shard == path)
        shards.append(
            ShardRecord(
                path=path,
                rows=rows,
                bytes=(cache / path).stat().st_size,
                sha256=digest(cache / path),
            )
        )
    write_manifest(cache, _manifest(tuple(sorted(cases, key=lambda c: c.case_id)), tuple(shards)))


def _record(case: CaseSlices, path: str, client: int | None) -> CaseRecord:
    return CaseRecord(
        case_id=case.case_id,
        patient_id=case.patient_id,
        cohort=case.cohort,
        grade=case.grade,
        site=case.site,
        split="test" if client is None else "train",
        client=client,
        shard=path,
        key=case.key,
        num_slices=len(case.z),
        label_voxels=_voxels(case),
        present=case.present,
        findings=tuple(case.findings.splitlines()),
        attributes={"Age": "60.46", "Survival": "289"} if case.cohort == "brats2018" else {},
        synthetic=case.case_id == SYNTHETIC,
    )


def _voxels(*cases: CaseSlices) -> LabelVoxels:
    labels = np.concatenate([label for case in cases for _, label in case.slices])
    counts = [int(np.sum(labels == value)) for value in (1, 2, 4)]
    return LabelVoxels(NEC=counts[0], ED=counts[1], ET=counts[2])


def _manifest(cases: tuple[CaseRecord, ...], shards: tuple[ShardRecord, ...]) -> Manifest:
    doubled = ("BraTS19_CBICA_AAB_1", "Brats18_CBICA_AAB_1")
    return Manifest(
        schema_version=2,
        label_convention="brats2018-2020",
        modalities=MODALITIES,
        fingerprint=FINGERPRINT,
        plane=PLANE,
        options=Options(
            clients=2,
            alpha=1.0,
            seed=7,
            test_fraction=0.25,
            protocol="patient",
            skew="quantity",
            min_cases=1,
            missing="zero",
            bias_correct=False,
            normalize="zscore",
            geometry="any",
            shard_cases=16,
            duplicates="keep",
        ),
        cohorts={
            "brats2018": CohortRecord(cases=1, patients=1, test_cases=0),
            "brats2019": CohortRecord(cases=2, patients=2, test_cases=1),
            "brats2020": CohortRecord(cases=1, patients=1, test_cases=0),
        },
        cases=cases,
        shards=shards,
        partition=PartitionRecord(
            q={"all": (1.0, 0.0)},
            sizes=(1, 1),
            repairs=(Move(patient_id="BraTS20_Training_003", source=0, target=1),),
            clients=(
                ClientRecord(
                    client=0,
                    patients=1,
                    cases=2,
                    slices=5,
                    grades={"HGG": 2},
                    sites={"CBICA": 2},
                    label_voxels=_voxels(*(case_slices(name) for name in doubled)),
                ),
                ClientRecord(
                    client=1,
                    patients=1,
                    cases=1,
                    slices=2,
                    grades={"unknown": 1},
                    sites={"Zürich": 1},
                    label_voxels=_voxels(case_slices("BraTS20_Training_003")),
                ),
            ),
            duplicates={"CBICA_AAB_1": doubled},
        ),
        leakage=count_leakage(cases, "patient"),
        repairs=(
            Repair(case_id="BraTS20_Training_003", action="W39_1998.09.19_Segm.nii taken as seg"),
        ),
        quarantined=(
            Quarantined(
                case_id="BraTS20_Training_009",
                cohort="brats2020",
                reason="no segmentation file",
                key=None,
            ),
        ),
        superseded=(),
        synthetic=True,
    )


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
