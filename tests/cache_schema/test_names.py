"""Names from documents: what could lead out of a folder, or fill a screen, is none."""

import pytest

from cache_schema.names import check_name, check_site


@pytest.mark.parametrize(
    "name",
    [
        "Brats18_2013_11_1",
        "BraTS20_Training_355",
        "TCGA-02-0006",
        "Brats18_ÖÄ_1",
        "a.b",
        "_",
        "x" * 255,
    ],
)
def test_ids_as_archives_and_other_tools_spell_them_are_names(name):
    assert check_name(name) == name
    assert check_site(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("../../../escaped", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "-rf"),
        *("a\0b", "a\nb", "a\n", "a b", "", "\u202egnp.exe", "a\x1b[2J", "x" * 256),
    ],
)
def test_what_is_no_name_is_refused_without_quoting_it(name):
    with pytest.raises(ValueError, match=r"is no name: a letter, digit or _ first") as caught:
        check_name(name)
    assert len(str(caught.value)) < 120
    assert "escaped" not in str(caught.value)


def test_a_site_may_be_nameless_but_leads_nowhere():
    assert check_site("") == ""
    with pytest.raises(ValueError, match="is no name"):
        check_site("../x")
