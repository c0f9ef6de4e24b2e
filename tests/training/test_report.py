import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cache_schema.errors import InputError
from training.config import write_config
from training.evaluate import evaluate, write_evaluation
from training.report import LABEL_COLOURS, overlay, write_report


class Page(HTMLParser):
    """Collects the addresses that a page would load, its words and its table cells."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(" ".join(data.split()))


@pytest.fixture
def evaluated_run(tiny_run, small_cache, tmp_path):
    run = tmp_path / "run"
    run.symlink_to(tiny_run)
    for untrained in (True, False):
        result = evaluate(run, small_cache, untrained=untrained, on_case=lambda *_: None)
        write_evaluation(run, result)
    yield run
    for path in [*tiny_run.glob("evaluation.*"), *tiny_run.glob("untrained.*")]:
        path.unlink()


def test_the_page_loads_nothing_and_shows_scores_leak_and_panels(
    evaluated_run, small_cache, tmp_path
):
    out = tmp_path / "deep" / "report.html"
    write_report([evaluated_run], small_cache, out, device="cpu")
    page = Page(out.read_text())
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/") for address in page.addresses)
    text = " ".join(page.words)
    assert "protocol patient: 0 of 1 test patients were also trained on" in text
    assert "WT untrained" in text
    assert "best, median and worst" in text
    num_bytes = 1076 * 4  # the tiny network, to and from two clients, in two rounds
    assert f"Clients received {num_bytes / 1e3:.1f} kB and sent {num_bytes / 1e3:.1f} kB." in text


def test_a_run_without_scores_says_how_to_get_them(tiny_run, small_cache, tmp_path):
    write_report([tiny_run], small_cache, tmp_path / "report.html", device="cpu")
    assert "train eval" in (tmp_path / "report.html").read_text()


def test_the_first_rounds_at_some_dice_are_shown(tiny_run, small_cache, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    lines = (run / "log.jsonl").read_text().splitlines()
    dice = iter([0.65, 0.85])
    for place, event in enumerate(map(json.loads, lines)):
        if event["event"] == "round":
            lines[place] = json.dumps({**event, "dice": dict.fromkeys(event["dice"], next(dice))})
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    write_report([run], small_cache, tmp_path / "report.html", device="cpu")
    words = " ".join(Page((tmp_path / "report.html").read_text()).words).split()
    start = words.index("Dice", words.index("batches."))
    assert words[start : start + 12] == (
        ["Dice", "0.5", "0.6", "0.7", "0.8", "0.9", "round", "1", "1", "2", "2", "none"]
    )


def test_a_run_with_a_fixed_number_of_steps_or_adaptive_epochs_says_so(
    tiny_run, tiny_config, small_cache, tmp_path
):
    run, out = Path(shutil.copytree(tiny_run, tmp_path / "run")), tmp_path / "report.html"
    for settings, words in (
        ({}, "2 rounds, 1 local epoch each;"),
        ({"local_steps": 7}, "2 rounds, 7 local steps each;"),
        (
            {"epoch_schedule": "adaptive", "local_epochs": 4},
            "2 rounds, at most 4 local epochs each;",
        ),
    ):
        write_config(run, tiny_config.model_copy(update=settings))
        write_report([run], small_cache, out, device="cpu")
        assert words in " ".join(Page(out.read_text()).words)


def test_a_folder_that_is_no_run_is_named(small_cache, tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        write_report([tmp_path], small_cache, tmp_path / "report.html")


def test_the_front_is_up_and_labels_are_painted():
    image = np.zeros((3, 2), np.float32)
    image[2, 0] = 5.0  # last along the first axis (left), first along the second (front)
    image[0, 1] = 1.0
    label = np.zeros((3, 2), np.uint8)
    label[1, 1] = 4
    painted = overlay(image, label)
    assert painted.shape == (2, 3, 3)
    assert painted[0, 2].tolist() == [1.0, 1.0, 1.0]
    assert painted[0, 0].tolist() == [0.0, 0.0, 0.0]
    red, green, blue = (int(LABEL_COLOURS["ET"][i : i + 2], 16) / 255 for i in (1, 3, 5))
    np.testing.assert_allclose(painted[1, 1], [0.65 * red, 0.65 * green, 0.65 * blue])
