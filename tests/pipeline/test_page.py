"""The page and the slide as files: all numbers, no network, the same bytes twice."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

import cli
from cache_schema.errors import InputError
from cache_schema.leakage import SYNTHETIC_NOTE
from cache_schema.manifest import Move, Quarantined, Repair, read_manifest
from pipeline.assemble import assemble_manifest
from pipeline.page import write_pictures
from pipeline.pictures import summary_figure
from pipeline.shard_task import make_shard


class Page(HTMLParser):
    """Collects the addresses that a page would load, its texts, and the rows of its tables by id."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.alternatives, self.words = [], [], []
        self.tables, self._table = {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        self.alternatives += [found["alt"]] if "alt" in found else []
        if tag == "table":
            self._table = found["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = ""

    def handle_data(self, data):
        text = " ".join(data.split())
        self.words.append(text)
        if self._table and self.tables[self._table] and self.tables[self._table][-1]:
            self.tables[self._table][-1][-1] += text


@pytest.fixture(scope="module")
def manifest(small_cache):
    return read_manifest(small_cache)


@pytest.fixture
def page_of(small_cache, tmp_path):
    """Writes the page of a manifest and reads it again."""

    def written(manifest) -> Page:
        (out,) = write_pictures(small_cache, manifest, html=tmp_path / "deep" / "show.html")
        return Page(out.read_text("utf-8"))

    return written


def test_the_page_loads_nothing(small_cache, manifest, page_of, tmp_path):
    page = page_of(manifest)
    # Six charts, and slices of two clients and three test sets.
    assert len(page.addresses) == 6 + 5
    assert all(address.startswith("data:image/") for address in page.addresses)
    text = (tmp_path / "deep" / "show.html").read_text("utf-8")
    assert re.search(r"https?:|url\(|@import|<script|<link", text) is None
    assert str(small_cache) not in text


def test_the_table_has_all_numbers_of_every_client(manifest, page_of):
    heading, *rows = page_of(manifest).tables["clients"]
    assert len(rows) == len(manifest.partition.clients) + 1
    for record, row in zip(manifest.partition.clients, rows, strict=False):
        shown = dict(zip(heading, row, strict=True))
        sites = ", ".join(f"{name} {count}" for name, count in sorted(record.sites.items()))
        assert shown == {
            "client": str(record.client),
            "patients": str(record.patients),
            "cases": str(record.cases),
            "slices": str(record.slices),
            **{grade: str(record.grades.get(grade, 0)) for grade in ("HGG", "LGG")},
            **{name: str(count) for name, count in record.label_voxels.model_dump().items()},
            "cases by site": sites,
        }
    totals = dict(zip(heading, rows[-1], strict=True))
    trained = [case for case in manifest.cases if case.split == "train"]
    assert totals["slices"] == str(sum(case.num_slices for case in trained))
    assert totals["HGG"] == str(sum(case.grade == "HGG" for case in trained))
    assert totals["ED"] == str(sum(case.label_voxels.ED for case in trained))


def test_cohorts_and_their_overlap_are_in_tables(manifest, page_of):
    tables = page_of(manifest).tables
    assert ["brats2018", "5", "5", "4", "1", "1", "0"] in tables["cohorts"]
    assert ["brats2020", "6", "6", "5", "1", "1", "0"] in tables["cohorts"]
    # Six people in 2020; four of them are in all three cohorts, one more in each of the others.
    counts = {members: int(count) for members, count in tables["overlap"][1:]}
    assert sum(counts.values()) == 6
    assert sum(count for members, count in counts.items() if "brats2018" in members) == 5


def test_a_leak_is_stated_and_marked(manifest, page_of):
    options = manifest.options.model_copy(update={"protocol": "paper"})
    leakage = manifest.leakage.model_copy(
        update={"protocol": "paper", "test_patients": 29, "also_in_training": 28}
    )
    page = page_of(manifest.model_copy(update={"options": options, "leakage": leakage}))
    text = " ".join(page.words)
    assert "protocol paper: 28 of 29 test patients were also trained on" in text


def test_a_page_and_a_slide_of_synthetic_data_say_so(manifest, page_of):
    note, synthetic = SYNTHETIC_NOTE[1:], manifest.model_copy(update={"synthetic": True})
    assert note in " ".join(page_of(synthetic).words)
    assert note not in " ".join(page_of(manifest).words)
    assert note in summary_figure(synthetic, []).get_suptitle()
    assert note not in summary_figure(manifest, []).get_suptitle()


def test_what_was_mended_moved_or_left_out_is_listed_and_escaped(manifest, page_of):
    partition = manifest.partition.model_copy(
        update={"repairs": (Move(patient_id="CBICA_AAB_1", source=1, target=0),)}
    )
    reason = "t2 has values < 0 & > 9"
    lost = Quarantined(case_id="Brats18_X_1", cohort="brats2018", reason=reason, key=None)
    mended = Repair(case_id="BraTS20_Training_355", action="W39.nii taken as seg")
    changes = {"partition": partition, "quarantined": (lost,), "repairs": (mended,)}
    tables = page_of(manifest.model_copy(update=changes)).tables
    assert tables["moves"][1:] == [["CBICA_AAB_1", "1", "0"]]
    assert tables["quarantined"][1:] == [["Brats18_X_1", "brats2018", reason]]
    assert tables["repairs"][1:] == [["BraTS20_Training_355", "W39.nii taken as seg"]]
    assert ["shard_cases", "3"] in tables["options"]


def without_t2(case):
    files = {role: path for role, path in case.files.items() if role != "t2"}
    return replace(case, files=files)


def test_an_absent_modality_is_told_to_those_who_cannot_see(small_plan, tmp_path):
    cases = tuple(map(without_t2, small_plan.cases))
    shards = tuple(
        replace(shard, cases=tuple(map(without_t2, shard.cases))) for shard in small_plan.shards
    )
    plan, cache = replace(small_plan, cases=cases, shards=shards), tmp_path / "cache"
    outcomes = [make_shard(shard, cache, plan.preprocessing, lambda _: None) for shard in shards]
    manifest = assemble_manifest(plan, outcomes)
    (out,) = write_pictures(cache, manifest, html=tmp_path / "a.html")
    alternatives = Page(out.read_text("utf-8")).alternatives
    assert sum("T1, T1CE, T2 absent, FLAIR, labels" in text for text in alternatives) == 5


def test_the_same_cache_gives_the_same_bytes(small_cache, manifest, tmp_path):
    for name in ("first", "second"):
        page, slide = tmp_path / f"{name}.html", tmp_path / f"{name}.PNG"
        assert write_pictures(small_cache, manifest, html=page, png=slide) == [page, slide]
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()
    slide = (tmp_path / "first.PNG").read_bytes()
    assert slide == (tmp_path / "second.PNG").read_bytes()
    assert slide.startswith(b"\x89PNG")
    width, height = (int.from_bytes(slide[start : start + 4]) for start in (16, 20))
    assert (width, height) == (2400, 1350)


@pytest.mark.parametrize(("option", "name"), [("html", "a.htm5"), ("png", "a.jpg"), ("png", "a")])
def test_another_suffix_is_refused_before_anything_is_written(
    option, name, small_cache, manifest, tmp_path
):
    places = {"html": tmp_path / "fine.html", "png": tmp_path / "fine.png", option: tmp_path / name}
    with pytest.raises(InputError, match=rf"--{option} .*{name} does not end in \.{option}"):
        write_pictures(small_cache, manifest, **places)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_with_its_option(small_cache, manifest, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for option, place in (("html", tmp_path / "file" / "a.html"), ("png", tmp_path / "folder.png")):
        with pytest.raises(InputError, match=f"--{option} {place} cannot be written") as caught:
            write_pictures(small_cache, manifest, **{option: place})
        assert "\n" not in str(caught.value)


def test_a_cache_is_not_written_into(cache_copy, manifest):
    out = cache_copy / "deep" / "show.html"
    with pytest.raises(InputError, match=r"--html .*show\.html lies inside the cache"):
        write_pictures(cache_copy, manifest, html=out)
    assert not out.parent.exists()


def test_a_missing_shard_is_named(cache_copy, manifest, tmp_path):
    (cache_copy / manifest.shards[0].path).unlink()
    with pytest.raises(InputError, match=r"shard-000\.h5 cannot be read"):
        write_pictures(cache_copy, manifest, png=tmp_path / "show.png")


def test_the_command_writes_what_is_asked_for_and_says_so(small_cache, tmp_path):
    page, slide = tmp_path / "show.html", tmp_path / "show.png"
    arguments = ["show", str(small_cache), "--html", str(page), "--png", str(slide)]
    result = CliRunner().invoke(cli.prep, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"show.html", "show.png"}
    assert result.output.count("written: ") == 2
