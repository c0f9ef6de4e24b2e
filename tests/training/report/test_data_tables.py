"""The cache in tables."""

from cache_schema.manifest import Quarantined, Superseded
from training.report.data_tables import client_table, cohort_table, omission_tables


def cells(table):
    return [row.cells for row in table.rows]


def test_cohorts_are_counted_and_the_leak_is_in_the_caption(manifest):
    leak = manifest.leakage.model_copy(update={"test_patients": 29, "also_in_training": 28})
    table = cohort_table(manifest, leak)
    assert "28 of 29 test patients were also trained on" in table.caption
    assert cells(table) == [
        ("brats2018", "5", "5", "4", "1", "1", "0"),
        ("brats2019", "5", "5", "4", "1", "1", "0"),
        ("brats2020", "6", "6", "5", "1", "1", "0"),
    ]


def test_clients_add_up(manifest):
    table = client_table(manifest)
    assert table.header[:5] == ("client", "patients", "cases", "HGG", "LGG")
    *clients, total = cells(table)
    assert [row[0] for row in clients] == ["0", "1"]
    assert total[2] == str(sum(case.split == "train" for case in manifest.cases))
    assert table.rows[-1].kind == "total"
    for column in (1, 2, 3, 4):
        assert sum(int(row[column]) for row in clients) == int(total[column])


def test_what_was_left_out_is_listed_if_anything_was(manifest):
    assert omission_tables(manifest) == []
    lost = Quarantined(case_id="Brats18_X_1", cohort="brats2018", reason="t2 < 0", key=None)
    old = Superseded(case_id="Brats18_Y_1", cohort="brats2018", patient_id="Y")
    changes = {"quarantined": (lost,), "superseded": (old,)}
    quarantined, superseded = omission_tables(manifest.model_copy(update=changes))
    assert cells(quarantined) == [("Brats18_X_1", "brats2018", "t2 < 0")]
    assert cells(superseded) == [("Brats18_Y_1", "brats2018", "Y")]
