"""Charts as data URIs."""

import base64

import pytest
from matplotlib.figure import Figure

from training.report.picture import chart, draw_lines, draw_stack, label_axes


def axes():
    return Figure().subplots()


def test_the_same_chart_gives_the_same_bytes_and_needs_no_network():
    first, second = (
        chart("Loss", "Falls", draw_lines({"a": [(1, 2.0), (2, 1.0)]}, "loss")) for _ in range(2)
    )
    assert first == second
    assert (first.title, first.alternative) == ("Loss", "Falls")
    kind, content = first.address.split(",")
    assert kind == "data:image/svg+xml;base64"
    assert b"</svg>" in base64.b64decode(content)


def test_bars_are_stacked_bottom_up():
    drawn = axes()
    draw_stack(drawn, [0, 1], {"a": [1.0, 2.0], "b": [3.0, 4.0]}, {"a": "#000000"}, "client")
    bars = [(bar.get_y(), bar.get_height()) for bar in drawn.patches]
    assert bars == [(0, 1), (0, 2), (1, 3), (2, 4)]
    assert drawn.get_ylim() == (0, pytest.approx(1.25 * 6))


def test_twenty_lines_all_look_different():
    drawn = axes()
    draw_lines({str(k): [(1, 0.0), (2, 1.0)] for k in range(20)}, "loss", (0.0, 1.0))(drawn)
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.lines}
    assert len(looks) == 20
    assert drawn.get_ylim() == (0, 1)


def test_a_line_without_points_is_left_out():
    drawn = axes()
    draw_lines({"begun": [], "done": [(1, 0.5)]}, "loss")(drawn)
    assert [line.get_label() for line in drawn.lines] == ["done"]


def test_a_run_of_one_round_has_a_whole_number_on_its_axis():
    drawn = axes()
    drawn.plot([1], [0.5], marker=".")
    label_axes(drawn, "round", "loss")
    low, high = drawn.get_xlim()
    assert [tick for tick in drawn.get_xticks() if low <= tick <= high] == [1.0]
