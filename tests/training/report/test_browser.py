"""The page in a real browser without a network: at a desk, on a phone, and printed."""

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from training.report.page import write_report

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOOK = """() => ({
    width: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll('body *')]
        .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5)
        .map(e => e.tagName),
    tables: Math.max(...[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right)),
    images: [...document.images].map(i => [i.naturalWidth, i.alt]),
    captions: [...document.querySelectorAll('table.scores')].map(t => t.caption.innerText),
    anchors: [...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null),
    headings: [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1])),
    hidden: [...document.querySelectorAll('details > *:not(summary)')]
        .filter(e => !e.checkVisibility({contentVisibilityAuto: true})).length,
    details: document.querySelectorAll('details').length,
    colour: getComputedStyle(document.body).color,
    background: getComputedStyle(document.body).backgroundColor,
})"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """Where Chromium is; whoever sets FEDUNETMM_CHROMIUM wants this not to be skipped."""
    path = os.environ.get("FEDUNETMM_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("FEDUNETMM_CHROMIUM is not set and there is no chromium on the PATH")
    return path


@pytest.fixture(scope="module")
def report(scored_run, small_cache, tmp_path_factory) -> Path:
    """The page that FEDUNETMM_REPORT names, such as the demo's, or one of the tests' own."""
    if "FEDUNETMM_REPORT" in os.environ:
        return Path(os.environ["FEDUNETMM_REPORT"]).absolute()
    folder = tmp_path_factory.mktemp("report")
    other = Path(
        shutil.copytree(scored_run, folder / "a-run-with-a-name-that-is-far-too-long-for-a-phone")
    )
    write_report([scored_run, other], small_cache, folder / "report.html", device="cpu")
    return folder / "report.html"


@pytest.fixture(scope="module")
def seen(chromium, report):
    """What the browser saw, by view; it is closed before any test looks at that."""
    from playwright.sync_api import sync_playwright

    found = {"complaints": [], "requests": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.on(
            "console", lambda m: found["complaints"].append(m.text) if m.type == "error" else None
        )
        page.on("pageerror", lambda error: found["complaints"].append(str(error)))
        page.on("request", lambda request: found["requests"].append(request.url))
        for view, width in (("desk", 1280), ("phone", 390)):
            page.set_viewport_size({"width": width, "height": 844})
            page.goto(report.as_uri(), wait_until="load")
            found[view] = page.evaluate(LOOK)
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 with margins
        found["paper"] = page.evaluate(LOOK)
        context.close()
        browser.close()
    return found


def test_nothing_is_complained_about(seen):
    assert seen["complaints"] == []


def test_no_request_but_the_page_itself_is_made(seen, report):
    requests = {url for url in seen["requests"] if not url.startswith("data:")}
    assert requests == {report.as_uri()}


@pytest.mark.parametrize(("view", "width"), [("desk", 1280), ("phone", 390)])
def test_nothing_but_tables_is_wider_than_the_screen(view, width, seen):
    assert seen[view]["width"] <= width
    assert seen[view]["wide"] == []


@pytest.mark.parametrize("view", ["desk", "phone"])
def test_every_image_is_loaded_and_has_an_alternative(view, seen):
    assert seen[view]["images"]
    for width, alternative in seen[view]["images"]:
        assert width > 0
        assert len(alternative) > 20


def test_protocol_and_leak_count_stand_with_every_table_of_scores(seen):
    assert seen["desk"]["captions"]
    for caption in seen["desk"]["captions"]:
        assert re.search(r"protocol patient: 0 of \d+ test patients were also trained on", caption)


def test_contents_lead_somewhere_and_no_level_of_headings_is_skipped(seen):
    assert set(seen["desk"]["anchors"]) == {True}
    levels = seen["desk"]["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_text_is_dark_on_light(seen):
    assert (seen["desk"]["colour"], seen["desk"]["background"]) == (
        "rgb(34, 34, 34)",
        "rgb(255, 255, 255)",
    )


def test_what_is_folded_away_is_printed(seen):
    assert seen["desk"]["hidden"] == seen["desk"]["details"] > 0
    assert seen["paper"]["hidden"] == 0


def test_tables_fit_on_paper(seen):
    assert seen["paper"]["width"] <= 718
    assert seen["paper"]["tables"] <= 718


@pytest.mark.skipif("FEDUNETMM_REPORT" in os.environ, reason="this is about the tests' own page")
def test_a_page_about_two_runs_shows_both_and_compares_them(seen):
    assert len(seen["desk"]["images"]) > 20
    # Two side by side and the paired test; three of the paper; four metrics and the clients of each run.
    assert len(seen["desk"]["captions"]) == 3 + 3 + 2 * 5
    assert len(seen["desk"]["anchors"]) == 6
    assert seen["desk"]["details"] == 6
