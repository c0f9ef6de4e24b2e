"""The page as text: one file that loads nothing, and all that belongs on it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from cache_schema.leakage import SYNTHETIC_NOTE
from cache_schema.manifest import digest, read_manifest
from training.central import run_central
from training.report.page import describe_pace, write_report


class Page(HTMLParser):
    """Collects the addresses that a page would load, its headings and its words."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words, self.headings, self._tag = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._tag = tag
        self.addresses += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        if self._tag in ("h1", "h2", "h3") and data.strip():
            self.headings.append((self._tag, data))
        self.words.append(" ".join(data.split()))


@pytest.fixture
def page_of(small_cache, tmp_path):
    """Writes a report of some runs and reads it again."""

    def written(*runs) -> Page:
        out = tmp_path / "deep" / "report.html"
        write_report(runs, small_cache, out, device="cpu")
        text = out.read_text("utf-8")
        assert re.search(r"https?:|url\(|@import|<script|<link", text) is None
        page = Page(text)
        assert all(address.startswith("data:image/") for address in page.addresses)
        page.text = " ".join(page.words)
        return page

    return written


@pytest.fixture
def copy(scored_run, tmp_path):
    return lambda name: Path(shutil.copytree(scored_run, tmp_path / name))


def test_a_run_with_scores_is_told_from_data_to_settings(page_of, scored_run):
    page = page_of(scored_run)
    assert page.headings == [
        ("h1", "FedUNetMM report"),
        *(("h2", name) for name in ("Contents", "Data and protocol", "Who had what")),
        *(("h2", name) for name in ("Beside the paper", "Run scored")),
        *(("h3", name) for name in ("Training", "Scores on the test set")),
        ("h3", "Test cases: best, median and worst by whole-tumour Dice"),
        *(("h3", name) for name in ("How evenly clients are served", "Settings")),
    ]
    # Clients' data; loss, Dice, time, bytes; clients' loss and Dice; two strips; one case.
    assert len(page.addresses) == 2 + 5 + 2 + 2 + 1
    # Four metrics, three tables of the paper, clients' cases, the cohorts and the head.
    leak = "rotocol patient: 0 of 1 test patients were also trained on"
    assert page.text.count(leak) == 4 + 3 + 1 + 1 + 1
    num_bytes = 1076 * 4  # the tiny network, to and from two clients, in two rounds
    assert (
        f"Clients received {num_bytes / 1e3:.1f} kB and sent {num_bytes / 1e3:.1f} kB." in page.text
    )
    assert "Nobody was absent, lost or refused" in page.text


def test_a_report_on_synthetic_data_says_so_and_shows_nothing_published(
    synthetic_cache, copy, tmp_path
):
    run = copy("phantom")
    identity = digest(read_manifest(synthetic_cache))
    for name in ("provenance.json", "evaluation.json"):
        document = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**document, "manifest": identity}))
    out = tmp_path / "report.html"
    write_report([run], synthetic_cache, out, device="cpu")
    page = Page(out.read_text("utf-8"))
    text = " ".join(page.words)
    assert ("h2", "Cohort by cohort") in page.headings
    assert SYNTHETIC_NOTE[1:] in text
    assert "No published row stands beside scores of synthetic data" in text
    for published in ("FedUNetMM published", "76.93", "Beside the paper", "paper's Table"):
        assert published not in text


def test_several_runs_are_compared(page_of, scored_run, copy):
    page = page_of(scored_run, copy("other"))
    assert ("h2", "Runs compared") in page.headings
    assert "What differs, and what it cost" in page.text
    assert "Paired Wilcoxon signed-rank tests" in page.text
    assert "no difference" in page.text


def test_runs_without_scores_say_how_to_get_them(page_of, tiny_run, copy):
    page = page_of(tiny_run, copy("other"))
    assert "Not evaluated yet: run train eval" in page.text
    assert "Fewer than two of these runs have scores" in page.text


def test_a_run_that_is_not_finished_says_so(page_of, copy):
    run = copy("begun")
    lines = (run / "log.jsonl").read_text().splitlines()
    events = [e for e in map(json.loads, lines) if (e["event"], e.get("round")) != ("round", 2)]
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert "Not finished: 1 of 2 rounds are done." in page_of(run).text


def test_scores_that_are_older_than_the_weights_say_so(page_of, scored_run, copy):
    line = "training went on to round 2"
    assert line not in page_of(scored_run).text
    run = copy("older")
    path = run / "evaluation.json"
    path.write_text(path.read_text().replace('"round": 2', '"round": 1'))
    assert line in page_of(run).text


def test_hospitals_with_caches_of_their_own_know_nothing_of_each_others_patients(page_of, copy):
    run = copy("own")
    path = run / "provenance.json"
    document = json.loads(path.read_text())
    sites = {"0": document["manifest"], "1": "another"}
    path.write_text(json.dumps({**document, "manifest": None, "sites": sites}))
    text = page_of(run).text
    leak = "also trained on by this hospital; whether other hospitals trained on them is not known"
    assert text.count("also trained on") == text.count("also trained on by this hospital") > 9
    assert leak in text
    assert "trained on in no cohort" not in text


def test_names_of_runs_are_escaped(page_of, copy):
    page = page_of(copy("<b>x&y"))
    assert ("h2", "Run <b>x&y") in page.headings


def test_the_same_run_gives_the_same_bytes(scored_run, small_cache, tmp_path):
    for name in ("first", "second"):
        write_report([scored_run], small_cache, tmp_path / name, device="cpu")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_central_training_is_reported_without_clients_and_bytes(
    page_of, small_cache, tiny_config, tmp_path, observer
):
    config = tiny_config.model_copy(update={"strategy": "central", "rounds": 1})
    run_central(config, small_cache, tmp_path / "central", observer)
    page = page_of(tmp_path / "central")
    assert "tiny, everybody's slices together, 1 epoch;" in page.text
    assert "Clients received" not in page.text
    assert "Loss and Dice of each client" not in page.text


def test_a_run_across_machines_is_reported_if_its_sites_hold_parts_of_the_cache(page_of, copy):
    run = copy("remote")
    document = json.loads((run / "provenance.json").read_text())
    sites = {"0": document["manifest"], "1": "another"}
    (run / "provenance.json").write_text(json.dumps({**document, "manifest": None, "sites": sites}))
    assert "each client's own" in page_of(run).text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "1 local epoch each"),
        ({"local_steps": 7}, "7 local steps each"),
        ({"epoch_schedule": "adaptive", "local_epochs": 4}, "at most 4 local epochs each"),
    ],
)
def test_how_long_clients_train_is_said(settings, words, tiny_config):
    assert describe_pace(tiny_config.model_copy(update=settings)) == words


def test_a_folder_that_is_no_run_is_named(small_cache, tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        write_report([tmp_path], small_cache, tmp_path / "report.html")


def test_a_run_of_another_cache_is_refused(copy, small_cache, tmp_path):
    run = copy("another")
    document = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**document, "manifest": None}))
    with pytest.raises(InputError, match="was trained on another cache"):
        write_report([run], small_cache, tmp_path / "report.html")


def test_a_run_that_is_named_twice_is_refused(tiny_run, small_cache, tmp_path):
    with pytest.raises(InputError, match="is named twice"):
        write_report([tiny_run, tiny_run], small_cache, tmp_path / "report.html")


def test_a_page_that_cannot_be_written_is_named(tiny_run, small_cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*a\.html cannot be written"):
        write_report([tiny_run], small_cache, tmp_path / "file" / "a.html", device="cpu")
