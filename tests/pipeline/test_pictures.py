"""Figures: their bars are the numbers of the manifest, counted by hand."""

from dataclasses import replace

import pytest

from cache_schema.manifest import (
    CaseRecord,
    ClientRecord,
    LabelVoxels,
    count_cohorts,
    count_leakage,
    read_manifest,
)
from pipeline.pictures import (
    LEAKED,
    chart_figure,
    client_charts,
    client_stacks,
    cohort_charts,
    cohort_combinations,
    image_bytes,
    strip_figure,
    summary_figure,
)
from pipeline.specimens import read_specimens


def case(name, patient, cohort, client, num_slices=1):
    return CaseRecord(
        case_id=name,
        patient_id=patient,
        cohort=cohort,
        grade="HGG",
        site="TMC",
        split="test" if client is None else "train",
        client=client,
        shard="clients/client-00/shard-000.h5",
        key="0" * 64,
        num_slices=num_slices,
        label_voxels=LabelVoxels(NEC=0, ED=0, ET=0),
        present=(True, True, True, True),
        findings=(),
        attributes={},
    )


# Four people: A in three cohorts, trained on and tested; C in two, tested; B and D in 2020 alone.
CASES = (
    case("A18", "A", "brats2018", 0, 10),
    case("A19", "A", "brats2019", 0, 20),
    case("A20", "A", "brats2020", None, 100),
    case("B20", "B", "brats2020", 2, 7),
    case("C19", "C", "brats2019", None, 100),
    case("C20", "C", "brats2020", None, 100),
    case("D20", "D", "brats2020", 2, 5),
)


def client(number, grades, sites, voxels):
    return ClientRecord(
        client=number,
        patients=1,
        cases=sum(grades.values()),
        slices=0,
        grades=grades,
        sites=sites,
        label_voxels=voxels,
    )


NOTHING = LabelVoxels(NEC=0, ED=0, ET=0)
CLIENTS = (
    client(0, {"LGG": 1, "HGG": 3}, {"CBICA": 1, "TMC": 3}, LabelVoxels(NEC=5, ED=60, ET=700)),
    client(1, {}, {}, NOTHING),
    client(2, {"unknown": 2}, {"TMC": 1, "unknown": 1}, LabelVoxels(NEC=1, ED=20, ET=0)),
)


@pytest.fixture
def manifest(small_cache):
    whole = read_manifest(small_cache)
    return whole.model_copy(
        update={
            "cases": CASES,
            "cohorts": count_cohorts(CASES),
            "leakage": count_leakage(CASES, "paper"),
            "partition": whole.partition.model_copy(update={"clients": CLIENTS}),
            "options": whole.options.model_copy(update={"clients": 3, "protocol": "paper"}),
        }
    )


@pytest.fixture
def many_sites(manifest):
    """The manifest with one client of 9 sites, A to I, of 9 cases to 1, and 4 cases of no known site."""
    sites = {chr(ord("A") + n): 9 - n for n in range(9)} | {"unknown": 4}
    one = client(0, {"HGG": 49}, sites, CLIENTS[0].label_voxels)
    partition = manifest.partition.model_copy(update={"clients": (one, CLIENTS[1], CLIENTS[1])})
    return manifest.model_copy(update={"partition": partition})


def draw(charts, title):
    (axes,) = chart_figure(charts[title]).axes
    return axes


def stacked(axes) -> dict[str, list[tuple[float, float]]]:
    """Return bottom and height of every bar by the name that the legend gives it."""
    return {
        bars.get_label(): [(bar.get_y(), bar.get_height()) for bar in bars]
        for bars in axes.containers
    }


def test_cases_are_stacked_by_grade(manifest):
    axes = draw(client_charts(manifest), "Training cases by grade")
    assert stacked(axes) == {
        "HGG": [(0, 3), (0, 0), (0, 0)],
        "LGG": [(3, 1), (0, 0), (0, 0)],
        "unknown": [(4, 0), (0, 0), (0, 2)],
    }
    assert [text.get_text() for text in axes.texts] == ["4", "0", "2"]
    assert axes.get_ylim()[1] > 4


def test_cases_are_stacked_by_site_the_most_frequent_first(manifest):
    axes = draw(client_charts(manifest), "Training cases by site")
    assert stacked(axes) == {
        "TMC": [(0, 3), (0, 0), (0, 1)],
        "CBICA": [(3, 1), (0, 0), (1, 0)],
        "unknown": [(4, 0), (0, 0), (1, 1)],
    }


def test_slices_are_those_of_training_cases_alone(manifest):
    axes = draw(client_charts(manifest), "Training slices by cohort")
    assert stacked(axes) == {
        "brats2018": [(0, 10), (0, 0), (0, 0)],
        "brats2019": [(10, 20), (0, 0), (0, 0)],
        "brats2020": [(30, 0), (0, 0), (0, 12)],
    }


def test_label_volumes_are_stacked_in_the_order_of_the_labels(manifest):
    axes = draw(client_charts(manifest), "Tumour voxels by label")
    assert stacked(axes) == {
        "NEC": [(0, 5), (0, 0), (0, 1)],
        "ED": [(5, 60), (0, 0), (1, 20)],
        "ET": [(65, 700), (0, 0), (21, 0)],
    }


def test_rare_sites_are_put_together_and_no_colour_is_used_twice(many_sites):
    stack = client_stacks(many_sites)["Training cases by site"]
    assert dict(stack.parts) == {
        **{name: [9 - n, 0, 0] for n, name in enumerate("ABCDEFG")},
        "2 other sites": [3, 0, 0],
        "unknown": [4, 0, 0],
    }
    colours = [stack.colours[name] for name in stack.parts]
    assert len(set(colours)) == len(colours)


def test_patients_are_counted_in_the_exact_combination_of_their_cohorts(manifest):
    # 2019 and 2020 share A and C, but A is in 2018 too.
    assert cohort_combinations(CASES) == {
        ("brats2020",): 2,
        ("brats2018", "brats2019", "brats2020"): 1,
        ("brats2019", "brats2020"): 1,
    }
    axes = draw(cohort_charts(manifest), "Patients by the cohorts they are in")
    assert [bar.get_height() for bar in axes.patches] == [2, 1, 1]


def test_the_matrix_marks_the_cohorts_of_each_combination(manifest):
    axes = draw(cohort_charts(manifest), "Patients by the cohorts they are in")
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    heights = {round(place, 6): label.get_text() for place, label in ticks}
    marked = {
        (int(x), heights[round(float(y), 6)])
        for line in axes.lines
        if line.get_marker() == "o" and line.get_color() == "#222222"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert marked == {
        (0, "brats2020"),
        (1, "brats2018"),
        (1, "brats2019"),
        (1, "brats2020"),
        (2, "brats2019"),
        (2, "brats2020"),
    }


def test_test_cases_of_patients_who_are_trained_on_stand_apart(manifest):
    axes = draw(cohort_charts(manifest), "Cases of each cohort")
    widths = {
        bars.get_label(): [(bar.get_x(), bar.get_width()) for bar in bars]
        for bars in axes.containers
    }
    assert widths == {
        "training": [(0, 1), (0, 1), (0, 2)],
        "test": [(1, 0), (1, 1), (2, 1)],
        LEAKED: [(1, 0), (2, 0), (3, 1)],
    }


def test_the_slide_says_how_many_test_patients_are_trained_on(manifest):
    leak = "protocol paper: 1 of 2 test patients were also trained on"
    assert leak in summary_figure(manifest, []).get_suptitle()
    assert "7 cases of 4 patients, 3 clients" in summary_figure(manifest, []).get_suptitle()


def words(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_an_absent_modality_is_called_absent(small_cache):
    specimen = read_specimens(small_cache, read_manifest(small_cache))[0]
    assert words(strip_figure(specimen)) == ["T1", "T1CE", "T2", "FLAIR", "labels"]
    record = specimen.case.model_copy(update={"present": (True, False, True, True)})
    figure = strip_figure(replace(specimen, case=record))
    assert words(figure) == ["T1", "T1CE", "absent", "T2", "FLAIR", "labels"]
    # The second of five panels, which one white column parts, is black.
    (image,) = figure.axes[0].images
    width = specimen.label.shape[1]
    shown = image.get_array()
    assert shown.shape == (specimen.label.shape[0], 5 * width + 4, 3)
    assert shown[:, width + 1 : 2 * width + 1].max() == 0
    assert shown[:, width].min() == 1


def test_the_slide_shows_every_chart_and_every_specimen(small_cache):
    manifest = read_manifest(small_cache)
    specimens = read_specimens(small_cache, manifest)
    figure = summary_figure(manifest, specimens)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    charts = [*client_charts(manifest), *cohort_charts(manifest)]
    owners = [f"{s.owner}: {s.case.case_id}, {s.case.grade}, z={s.z}" for s in specimens]
    assert titles == [*charts, *owners, ""]  # five specimens in two rows of three


def test_the_same_chart_gives_the_same_bytes_without_a_date(manifest):
    charts = client_charts(manifest)
    first, second = (
        image_bytes(chart_figure(charts["Tumour voxels by label"]), "svg") for _ in range(2)
    )
    assert first == second
    assert b"dc:date" not in first
