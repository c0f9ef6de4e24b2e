"""Tables of any dialect: read whole, or refused by name."""

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache_schema.errors import InputError
from pipeline.csv_text import plain_name, read_table


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def cells(path: Path) -> list[dict[str, str]]:
    table = read_table(path)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows.values()]


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "t.csv", b"\xef\xbb\xbfGrade, Site\r\nHGG, CBICA \r\nLGG\r\n")
    assert cells(path) == [{"Grade": "HGG", "Site": "CBICA"}, {"Grade": "LGG", "Site": ""}]


def test_a_table_in_another_encoding_is_refused_by_name(tmp_path):
    path = write(tmp_path / "t.csv", b"Grade\nZ\xfcrich\n")
    with pytest.raises(InputError, match=r"t\.csv is not UTF-8 text"):
        read_table(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_excels_utf_16_is_read(tmp_path, encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"
    path = write(tmp_path / "t.csv", (mark + "Grade\tSite\r\nHGG\tZürich\r\n").encode(encoding))
    assert cells(path) == [{"Grade": "HGG", "Site": "Zürich"}]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("Grade;Site\nHGG;A", ("Grade", "Site")),
        ("Grade\tSite\nHGG\tA", ("Grade", "Site")),
        ("Grade\nHGG\n", ("Grade",)),
        ('"Site; one, two";Grade\nA;HGG\n', ("Site; one, two", "Grade")),
        ('"a,b,c"\t"d,e"\nA\tHGG\n', ("a,b,c", "d,e")),
        ("\n \nGrade;Site\nHGG;A\n", ("Grade", "Site")),
        ("sep=;\nGrade;Site\nHGG;A\n", ("Grade", "Site")),
        ('"sep=|"\r\nGrade|Site\r\nHGG|A\r\n', ("Grade", "Site")),
        ("\ufeffSEP=\t\nGrade\tSite\nHGG\tA\n", ("Grade", "Site")),
        ("Grade,Site,,,\nHGG,A,,,\n", ("Grade", "Site")),
        ('"Grade" , "Site"\n"HGG" , "A"\n', ("Grade", "Site")),
        ("Grade,Site\rHGG,A\r", ("Grade", "Site")),
        ("Grade,Site\nHGG,A,,\n", ("Grade", "Site")),
    ],
)
def test_the_header_tells_the_dialect(tmp_path, text, columns):
    table = read_table(write(tmp_path / "t.csv", text))
    assert table.columns == columns
    assert [len(row) for row in table.rows.values()] == [len(table.columns)]


def test_a_quoted_cell_keeps_delimiters_quotes_and_lines(tmp_path):
    path = write(tmp_path / "t.csv", 'Grade,Note\r\nHGG,"a ""b"", c\r\n\r\nd"\r\n\r\nLGG,e\r\n')
    table = read_table(path)
    assert table.rows == {4: ("HGG", 'a "b", c\n\nd'), 6: ("LGG", "e")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Grade,Note\nHGG," + "x" * 200_000 + "\n", "cannot be read as CSV"),
        ('Grade,Note\nHGG,"open\nLGG,x\n', "a quote is opened and never closed"),
        ("Grade,Note\nHGG,a\n\nLGG,a,b\n", r"line 4: 3 cells under 2 columns"),
        ("Grade,Note\nHGG,\0\n", "holds NUL bytes"),
        ("Grade,Note\n".encode("utf-16-le"), "holds NUL bytes"),
        (b"\xff\xfeG", "is not UTF-16 text"),
        (b"PK\x03\x04\xff\xff", "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_whole_is_refused_by_name(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path):
    (tmp_path / "t.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"t\.csv cannot be read"):
        read_table(tmp_path / "t.csv")


def test_columns_of_known_names_tell_the_delimiter(tmp_path):
    path = write(tmp_path / "t.csv", "Case ID\tage, sex, site\nA\tx\n")
    assert read_table(path).columns == ("Case ID\tage", "sex", "site")
    table = read_table(path, [re.compile("caseid")])
    assert (table.columns, table.rows) == (("Case ID", "age, sex, site"), {2: ("A", "x")})


def test_spellings_of_a_column_have_one_plain_name():
    assert {plain_name(name) for name in ("Case_ID", "case id", "CASE-ID", "caseId ")} == {"caseid"}


TEXTS = st.text(st.sampled_from('ab,;\t"\r\n =sep|\0\ufeff'), max_size=30)


@settings(deadline=None)
@given(
    st.binary(max_size=20) | TEXTS.map(str.encode) | TEXTS.map(lambda text: text.encode("utf-16"))
)
@example(b"sep=\n")
@example(b'sep="\na"b')
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp() / "anything.csv", data)
    with suppress(InputError):
        table = read_table(path)
        assert {len(row) for row in table.rows.values()} <= {len(table.columns)}


def test_a_pipe_is_refused_and_nobody_waits_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv cannot be read: it is a pipe, not a file"):
        read_table(tmp_path / "t.csv")


def test_a_pipe_a_sparse_file_and_an_endless_cell_are_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "sparse.csv").touch()
    os.truncate(tmp_path / "sparse.csv", 50 * 10**9)
    write(tmp_path / "cell.csv", "A,B\n" + "x" * 200_000 + ",1\n")
    for name, message in (
        ("pipe", "it is a pipe"),
        ("sparse", "it is larger than"),
        ("cell", "field larger than field limit"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.csv cannot be read.*{message}"):
            read_table(tmp_path / f"{name}.csv")
