"""What a run took, as it is saved and read."""

import pytest
import torch

from cache_schema.errors import InputError
from training.cost import Cost, measured_cost, read_cost, write_cost
from training.runlog import ClientRecord, RoundRecord, open_log


def test_a_cost_is_read_as_it_was_saved_and_none_where_nobody_has_measured(tmp_path):
    assert read_cost(tmp_path) is None
    for cost in (Cost("cpu", 3, 1.5, None), Cost("cuda", 1, 0.25, 10**10)):
        write_cost(tmp_path, cost)
        assert read_cost(tmp_path) == cost


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"device": "cpu", "steps": 0, "seconds": 1.0, "peak_bytes": null}',
        '{"device": "cpu", "steps": "3", "seconds": 1.0, "peak_bytes": null}',
        '{"device": "cpu", "steps": 3, "seconds": NaN, "peak_bytes": null}',
        '{"device": "cpu", "steps": 3, "seconds": 1.0}',
        '{"device": "cpu", "steps": 3, "seconds": 1.0, "peak_bytes": null, "colour": 1}',
    ],
)
def test_a_damaged_cost_is_one_line(text, tmp_path):
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(InputError, match=r"cost\.json.*; remove it, and the same command"):
        read_cost(tmp_path)


def test_what_training_took_is_not_told_of_a_log_that_has_lost_rounds(tmp_path):
    def finish(log, number):
        part = ClientRecord(-1, 8, 5, 0.5, {}, 1.0)
        log.round_done(RoundRecord(number, 0.5, {}, 2.0, (part,)))

    with open_log(tmp_path) as log:
        finish(log, 2)
    with pytest.raises(InputError, match=r"log\.jsonl lacks rounds"):
        measured_cost(tmp_path, torch.device("cpu"))
    with open_log(tmp_path) as log:
        finish(log, 1)
    cost = measured_cost(tmp_path, torch.device("cpu"))
    assert (cost.device, cost.steps, cost.seconds) == ("cpu", 10, 4.0)
