from cache_schema.vocabulary import COHORTS
from training.models.table import VARIANTS
from training.published import PUBLISHED


def rows(cohort):
    return {row.method: row for row in PUBLISHED[cohort].rows}


def test_every_cohort_has_its_table_of_ten_methods():
    assert list(PUBLISHED) == list(COHORTS)
    assert [table.number for table in PUBLISHED.values()] == [1, 2, 3]
    assert all(len(rows(cohort)) == 10 for cohort in COHORTS)


def test_the_headline_rows_are_as_printed():
    assert rows("brats2018")["FedUNetMM"].dice_percent == (76.93, 84.35, 84.63, 82.25)
    assert rows("brats2019")["UNetMM (Centralized)"].dice_percent == (77.23, 84.83, 86.74, 82.93)
    assert rows("brats2020")["FedUNetMM"].dice_percent == (75.87, 83.17, 88.44, 82.49)
    assert (rows("brats2020")["SwinUNETR"].parameters_m, rows("brats2020")["SwinUNETR"].gflops) == (
        62.19,
        794.02,
    )


def test_most_averages_are_the_mean_of_their_row_and_the_others_stay_as_printed():
    odd = {
        (cohort, row.method)
        for cohort in COHORTS
        for row in PUBLISHED[cohort].rows
        if abs(sum(row.dice_percent[:3]) / 3 - row.dice_percent[3]) > 0.011
    }
    assert odd == {
        ("brats2018", "Residual 3D U-Net"),
        ("brats2018", "Swin UNETR"),
        ("brats2018", "UNetMM (Centralized)"),
        ("brats2018", "FedUNetMM"),
        ("brats2019", "3D U-Net"),
        ("brats2019", "Swin UNETR"),
    }


def test_the_size_of_the_network_is_the_one_that_the_size_table_compares_with():
    published = VARIANTS["unetmm"][0].published
    for cohort in COHORTS:
        row = rows(cohort)["FedUNetMM"]
        assert (row.parameters_m, row.gflops) == (published.parameters_m, published.gflops)
