"""Tables beside the archives: written by many hands, read to the same rows or refused by name."""

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import InputError
from pipeline.cohorts import canonical_case_id, discover
from pipeline.tables import (
    MappingRow,
    is_name_mapping,
    is_survival,
    read_name_mapping,
    read_survival,
    unread_tables,
)

COLUMNS_2020 = (
    "Grade",
    "BraTS_2017_subject_ID",
    "BraTS_2018_subject_ID",
    "TCGA_TCIA_subject_ID",
    "BraTS_2019_subject_ID",
    "BraTS_2020_subject_ID",
)
PEOPLE = (
    ("HGG", "Brats17_A_1_1", "Brats18_A_1_1", "NA", "BraTS19_A_1_1", "BraTS20_Training_005"),
    ("LGG", "NA", "Brats18_B_2_1", "TCGA-DU-5855", "NA", "BraTS20_Training_002"),
    ("NA", "NA", "NA", "NA", "NA", "BraTS20_Training_003"),
)
ROWS = (
    MappingRow(("Brats17_A_1_1", "Brats18_A_1_1", "BraTS19_A_1_1", "BraTS20_Training_005"), "HGG"),
    MappingRow(("Brats18_B_2_1", "BraTS20_Training_002", "TCGA-DU-5855"), "LGG"),
    MappingRow(("BraTS20_Training_003",), "unknown"),
)


@pytest.fixture
def mapping(tmp_path):
    """Reads a name mapping of the given text or bytes, with ids as they are spelled there."""

    def read(text: str | bytes) -> tuple[MappingRow, ...]:
        return read_name_mapping(write(tmp_path / "name_mapping.csv", text), str)

    return read


@pytest.fixture
def survival(tmp_path):
    """Reads survival tables of the given texts."""

    def read(*texts: str):
        paths = [write(tmp_path / f"survival_{i}.csv", text) for i, text in enumerate(texts)]
        return read_survival(paths, canonical_case_id)

    return read


@pytest.fixture
def true_tables() -> Path:
    """Folder of the true tables of 2018, 2019 and 2020; the test is skipped without it."""
    place = os.environ.get("FEDUNETMM_BRATS")
    if not place:
        pytest.skip("FEDUNETMM_BRATS is not set")
    return Path(place) / "metadata"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_mapping_reads_to_names_and_grade(mapping):
    assert mapping("\n".join(map(",".join, (COLUMNS_2020, *PEOPLE)))) == ROWS


@st.composite
def written_mappings(draw) -> bytes:
    """The three people in any dialect, with columns in any order and others between them."""
    table = [list(row) for row in (COLUMNS_2020, *PEOPLE)]
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    notes = st.text(st.sampled_from('ab ,;\t"' + end), max_size=6)
    for column in draw(
        st.lists(st.sampled_from(["Note", "Site; where", "Age, years"]), unique=True)
    ):
        for row, cell in zip(table, [column, *(draw(notes) for _ in PEOPLE)], strict=True):
            row.append(cell)
    order = draw(st.permutations(range(len(table[0]))))
    # Names are found in the order of columns, so ids keep theirs.
    ids = iter(i for i in range(len(table[0])) if table[0][i].startswith("BraTS_"))
    order = [next(ids) if table[0][i].startswith("BraTS_") else i for i in order]
    change_case = draw(st.sampled_from([str, str.lower, str.upper]))
    table[0] = [change_case(cell) for cell in table[0]]
    file = io.StringIO()
    writer = csv.writer(
        file,
        delimiter=draw(st.sampled_from([",", ";", "\t"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        lineterminator=end,
    )
    for row in table:
        writer.writerow([row[i] for i in order] + [""] * draw(st.integers(0, 2)))
        file.write(end * draw(st.integers(0, 1)))
    return file.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


@settings(deadline=None)
@given(written_mappings())
def test_every_dialect_of_a_mapping_reads_to_the_same_rows(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp() / "name_mapping_in_a_dialect.csv", data)
    assert read_name_mapping(path, str) == ROWS


@pytest.mark.parametrize(
    "column",
    ["BraTS_2018_subject_ID", "BraTS2018", "brats18id", "Brats_2018 Subject ID", "BRATS-2018-ID"],
)
def test_a_column_of_ids_is_known_under_its_many_names(mapping, column):
    rows = mapping(f"GRADE,{column}\nhgg,Brats18_A_1_1\n")
    assert rows == (MappingRow(("Brats18_A_1_1",), "HGG"),)


def test_an_id_is_spelled_as_its_archive_spells_it(tmp_path):
    (tmp_path / "BraTS20_Training_005").mkdir()
    path = write(tmp_path / "name_mapping.csv", "BraTS2020;BraTS2019\nbrats20_training_005;na\n")
    rows = read_name_mapping(path, lambda text: canonical_case_id(text) or text)
    assert rows == (MappingRow(("BraTS20_Training_005",), "unknown"),)


def test_the_delimiter_is_the_one_that_finds_columns_of_ids(mapping):
    text = "BraTS2018\tage, sex, site\tBraTS2019\nBrats18_A_1_1\t1, 2\tBraTS19_A_1_1\n"
    assert mapping(text) == (MappingRow(("Brats18_A_1_1", "BraTS19_A_1_1"), "unknown"),)


@pytest.mark.parametrize("absent", ["", "NA", "n/a", "NaN", "None", "null", "-"])
def test_what_says_that_there_is_no_id_joins_nobody(mapping, absent):
    text = f"BraTS_2018_subject_ID,BraTS_2019_subject_ID\nBrats18_A_1_1,{absent}\n{absent},{absent}"
    assert mapping(text) == (MappingRow(("Brats18_A_1_1",), "unknown"),)


def test_what_is_no_id_is_refused_lest_it_joins_strangers(mapping):
    with pytest.raises(InputError, match=r"name_mapping\.csv, line 3: 'yes' is no id"):
        mapping("BraTS_2018_subject_ID,BraTS2019\nBrats18_A_1_1,NA\nBrats18_B_1_1,yes\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "Grade,Subject\nHGG,Brats18_A_1_1\n",
        "HGG,Brats17_A_1_1,Brats18_A_1_1,NA,BraTS19_A_1_1\n",  # no header
        "TCGA_TCIA_subject_ID,Grade\nTCGA-DU-1,HGG\n",
        "BraTS_2018_subject_ID BraTS_2019_subject_ID\nBrats18_A_1_1 BraTS19_A_1_1\n",
        "BraTS_2018_subject_ID|BraTS_2019_subject_ID\nBrats18_A_1_1|BraTS19_A_1_1\n",
    ],
)
def test_a_mapping_without_a_column_of_ids_is_never_taken_for_empty(mapping, text):
    with pytest.raises(InputError, match=r"name_mapping\.csv has no column of ids") as caught:
        mapping(text)
    assert "BraTS_2020_subject_ID" in str(caught.value)
    assert (text.strip().partition("\n")[0].split(",")[0] or "none") in str(caught.value)


def test_a_mapping_of_a_header_alone_is_empty(mapping):
    assert mapping("Grade,BraTS_2018_subject_ID\r\n") == ()


def test_a_column_that_is_there_twice_is_refused(mapping):
    with pytest.raises(InputError, match="two columns named brats2018"):
        mapping("brats2018,BraTS_2019_subject_ID,BraTS 2018\nBrats18_A_1_1,NA,Brats18_B_1_1\n")


def test_columns_of_other_names_may_be_there_twice(mapping):
    text = "Note,BraTS2018,Note,\nx,Brats18_A_1_1,y,\n"
    assert mapping(text) == (MappingRow(("Brats18_A_1_1",), "unknown"),)


def test_a_case_of_two_grades_is_refused(mapping):
    with pytest.raises(InputError, match="has Brats18_A_1_1 both as HGG and as LGG"):
        mapping("BraTS2018,Grade\nBrats18_A_1_1,HGG\nBrats18_B_1_1,LGG\nBrats18_A_1_1,LGG\n")


def test_a_column_that_only_begins_like_tcga_joins_nobody(mapping):
    (row,) = mapping("TCGA_site_1,BraTS2018\nDU_1,Brats18_A_1_1\n")
    assert row.names == ("Brats18_A_1_1",)


@pytest.mark.parametrize("column", ["BraTS18ID", "BraTS19ID", "Brats20ID", "Brats17ID", "Patient"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_survival_tables_ids_may_stand_in_any_column(survival, column, delimiter):
    header = ("Age", column, "Survival_days")
    rows = (header, ("60.4", "brats20_training_001", "289"), ("NA", "BraTS20_Testing_001", ""))
    found = survival("\r\n".join(map(delimiter.join, rows)))
    assert found.attributes == {"BraTS20_Training_001": {"Age": "60.4", "Survival_days": "289"}}
    assert found.findings == {}


def test_of_two_values_the_first_is_kept_and_the_other_is_a_finding(survival):
    found = survival(
        "BraTS18ID,Age,Age\nBrats18_A_1_1,60,61\nBrats18_B_1_1,50,50\n",
        "BraTS18ID,Age,Sex\nBrats18_A_1_1,60,F\nBrats18_B_1_1,51,M\nBrats18_C_1_1,,M\n",
    )
    assert found.attributes == {
        "Brats18_A_1_1": {"Age": "60", "Sex": "F"},
        "Brats18_B_1_1": {"Age": "50", "Sex": "M"},
        "Brats18_C_1_1": {"Sex": "M"},
    }
    assert found.findings == {
        "Brats18_A_1_1": ("survival_0.csv has Age '61' for this case: '60' was kept",),
        "Brats18_B_1_1": ("survival_1.csv has Age '51' for this case: '50' was kept",),
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no column of case ids"),
        ("Patient,Age\nA,60\n", "has no column of case ids"),
        ("BraTS18ID,Age\n1,60\n", "has no column of case ids"),
        ("Brats18_A_1_1,60,289\nBrats18_B_1_1,61,280\n", "has no header"),
        ("BraTS18ID,Age\nBrats18_A_1_1,60,289\n", "line 2: 3 cells under 2 columns"),
        ('BraTS18ID,Age\nBrats18_A_1_1,"60\n', "a quote is opened and never closed"),
        (b"BraTS18ID,City\nBrats18_A_1_1,Z\xfcrich\n", "is not UTF-8 text"),
    ],
)
def test_survival_data_that_are_not_understood_stop_nothing_and_are_named(tmp_path, text, reason):
    path = write(tmp_path / "survival_data.csv", text)
    assert read_survival([path], canonical_case_id).attributes == {}
    (found,) = unread_tables([path]).items()
    assert found[0] == path
    assert found[1].startswith(reason)


@pytest.mark.parametrize("text", ["BraTS18ID,Age\n", "ID,Age\nBraTS20_Testing_001,60\n"])
def test_survival_data_of_no_case_at_hand_are_understood(tmp_path, text):
    assert unread_tables([write(tmp_path / "survival_data.csv", text)]) == {}


def test_tables_in_another_form_are_named(tmp_path):
    names = [
        "survival_info.ods",
        "name_mapping.xlsx",
        "Name_Mapping_2020.XLS",
        "name mapping.csv.gz",
        "name_mapping",
        "name_mapping.json",
        "name_mapping.csv",
        "~$name_mapping.xlsx",
        "._name_mapping.xlsx",
        "BraTS20_Training_001_t1.nii.gz",
        "survival.py",
        "scores.xlsx",
    ]
    paths = [tmp_path / name for name in names]
    unread = unread_tables(paths)
    assert list(unread) == sorted(paths[:6])
    assert unread[paths[1]] == "not read in this form: save it as CSV"


def test_a_mapping_under_another_name_is_named(tmp_path):
    paths = [tmp_path / "2019_name_mapping.csv", tmp_path / "BraTS20 Name Mapping.tsv"]
    reason = "not read under this name: let it begin with name_mapping"
    assert unread_tables(paths) == dict.fromkeys(paths, reason)


def test_tables_are_known_by_the_beginning_and_the_end_of_their_name():
    mappings = ("name_mapping.csv", "Name_Mapping_validation_data.CSV", "name mapping.tsv")
    others = ("my_name_mapping.csv", "name_mapping.xlsx", "._name_mapping.csv")
    assert all(is_name_mapping(Path(name)) for name in mappings)
    assert not any(is_name_mapping(Path(name)) for name in others)
    assert is_survival(Path("Survival_info.tsv"))
    assert not is_survival(Path("survival"))


def test_findings_of_survival_tables_are_findings_of_their_cases(tmp_path):
    for number in (1, 2):
        (tmp_path / f"BraTS20_Training_00{number}").mkdir()
    rows = "BraTS20_Training_001;60\nBraTS20_Training_001;61\nBraTS20_Training_002;50\n"
    write(tmp_path / "survival_info.tsv", "Brats20ID;Age\n" + rows)
    first, second = discover([tmp_path]).cases
    assert (first.attributes, second.attributes) == ({"Age": "60"}, {"Age": "50"})
    assert first.findings == ("survival_info.tsv has Age '61' for this case: '60' was kept",)
    assert second.findings == ()


@pytest.mark.parametrize(
    ("path", "people", "names"),
    [
        ("2019/MICCAI_BraTS_2019_Data_Training/name_mapping.csv", 335, 285 + 285 + 167 + 335),
        (
            "2020/MICCAI_BraTS2020_TrainingData/name_mapping.csv",
            369,
            285 + 285 + 167 + 335 + 369,
        ),
        (
            "2020/MICCAI_BraTS2020_ValidationData/name_mapping_validation_data.csv",
            125,
            101 + 118 + 76 + 125 + 125,
        ),
    ],
)
def test_the_true_mappings_are_read_with_all_their_rows(true_tables, path, people, names):
    rows = read_name_mapping(true_tables / path, str)
    assert len(rows) == people
    assert sum(len(row.names) for row in rows) == names


def test_the_true_survival_tables_are_read_with_all_their_rows(true_tables):
    paths = sorted(true_tables.rglob("survival*.csv"))
    assert unread_tables(paths) == {}
    found = read_survival(paths, str)
    assert len(found.attributes) == 163 + 259 + 236 + 166 + 29
    assert found.findings == {}
    assert found.attributes["BraTS20_Training_001"] == {
        "Age": "60.463",
        "Survival_days": "289",
        "Extent_of_Resection": "GTR",
    }
