"""Tables of scores, for a terminal."""

from collections.abc import Mapping

from rich.table import Table

from cache_schema.manifest import LeakageRecord
from cache_schema.vocabulary import REGIONS
from training.evaluate import Evaluation


def score_table(evaluation: Evaluation) -> Table:
    """Show the mean Dice of each region, in percent as the paper does, and what to know about it."""
    state = f"after round {evaluation.round}" if evaluation.round else "untrained"
    table = Table(
        title=f"Dice (%) of the network {state}, convention {evaluation.convention}",
        caption=describe_leakage(evaluation.leakage),
    )
    table.add_column("test set")
    for heading in ("cases", *REGIONS, "average"):
        table.add_column(heading, justify="right")
    for name, means in evaluation.means().items():
        dice = (f"{100 * means[key]:.2f}" for key in (*REGIONS, "mean"))
        table.add_row(name, str(int(means["cases"])), *dice)
    return table


def describe_gain(evaluation: Evaluation, untrained: Mapping[str, Mapping[str, float]]) -> str:
    """Say in a line what training gained: the mean Dice over all test cases, before and after."""
    after = evaluation.means()["all"]
    gains = (f"{r} {untrained['all'][r]:.3f} to {after[r]:.3f}" for r in REGIONS)
    return f"Dice untrained to trained: {', '.join(gains)}"


def describe_leakage(leakage: LeakageRecord) -> str:
    """Say in a line how many test patients were also trained on."""
    return (
        f"protocol {leakage.protocol}: {leakage.also_in_training} of {leakage.test_patients} test "
        "patients were also trained on"
    )
