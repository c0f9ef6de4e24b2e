"""The table of docs/performance.md, from the figures that were kept."""

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

from cache_schema.files import write_atomically

RESULTS: Final = Path(__file__).parent / "results"
PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN: Final = "<!-- table: python -m bench --table -->"
END: Final = "<!-- end of table -->"


@dataclass(frozen=True)
class Row:
    """One figure with its target.

    Attributes:
        what: In words.
        key: Part and keys of the figure in its JSON, with dots.
        low: The least that is asked for, if any.
        high: The most that is allowed, if any; with neither bound the figure is only told.
    """

    what: str
    key: str
    low: float | None = None
    high: float | None = None

    @property
    def has_target(self) -> bool:
        """Whether anything is asked for."""
        return self.low is not None or self.high is not None

    @property
    def target(self) -> str:
        """The target in words."""
        if not self.has_target:
            return "—"
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    def is_met(self, figure: float) -> bool:
        """Tell whether a figure reaches the target."""
        return (self.low is None or figure >= self.low) and (
            self.high is None or figure <= self.high
        )


ROWS: Final = (
    Row(
        "Preparing a real case, one worker, times the floor", "prep.real.ratio_to_floor", None, 1.3
    ),
    Row("Preparing a phantom case, same", "prep.phantom.ratio_to_floor", None, 1.3),
    Row(
        "CPU time of a whole `prep partition` of sixteen real patients, over that by names alone",
        "prep.identity.real.ratio_to_names_alone",
        None,
        1.03,
    ),
    Row("Two workers, times as fast as one", "scaling.speedup_2_workers", 1.8),
    Row("Preparing, times as fast as MONAI", "peers.times_faster_than_monai", 6),
    Row("Preparing, times as fast as TorchIO", "peers.times_faster_than_torchio", 5),
    Row("Worker's peak memory, 40 cases over 4", "memory.ratio_40_to_4", 0.9, 1.1),
    Row("Peak memory of `train eval`, 40 cases over 4", "scoring.ratio_40_to_4", None, 1.1),
    Row("`--reuse`, times as fast as anew", "reuse.times_faster", 5),
    Row("Random real slices, share of uncompressed", "reading.real.ratio_to_uncompressed", 0.45),
    Row(
        "Checking real shards once, percent of a run on an H200",
        "reading.real.checking_percent_of_a_run",
        None,
        1,
    ),
    Row("Checking phantom shards, same", "reading.phantom.checking_percent_of_a_run", None, 1),
    Row("Megabytes of a real case", "reading.real.megabytes_per_case", None, 13),
    Row(
        "A real patch of 128 voxels, times its slices alone",
        "patches.real.ratio_to_slices",
        None,
        1.3,
    ),
    Row("A phantom patch, same", "patches.phantom.ratio_to_slices", None, 1.3),
    Row("Random phantom slices, share", "reading.phantom.ratio_to_uncompressed", 0.45),
    Row("Random slices, times as fast as MONAI", "reading.times_faster_than_monai", 500),
    Row(
        "Training on a CPU, percent that shards add to a step", "train.data_share_percent", None, 3
    ),
    Row("Same, times as fast as naive float32", "train.times_faster_than_naive_float32"),
    Row(
        "Training on a GPU, percent that shards add to a step",
        "train-gpu.data_share_percent",
        None,
        3,
    ),
    Row("Same, times as fast as naive float32", "train-gpu.times_faster_than_naive_float32", 4),
    Row("Same, times as fast as naive bfloat16", "train-gpu.times_faster_than_naive_bfloat16", 2),
    Row(
        "Same, percent of the chip's dense bfloat16 rate",
        "train-gpu.full_batch.percent_of_peak_bfloat16",
    ),
    Row(
        "Aggregating 20 clients, times a NumPy pass of float64 sums",
        "federated.ratio_to_numpy_float64",
        None,
        1.5,
    ),
    Row(
        "Server's peak memory, 80 clients over 5, `fedavg`",
        "federated.memory.fedavg.ratio_80_to_5",
        0.9,
        1.1,
    ),
    Row("Same, `fedadam`", "federated.memory.fedadam.ratio_80_to_5", 0.9, 1.1),
    Row("Same, `median`", "federated.memory.median.ratio_80_to_5", 0.9, 1.1),
    Row("Same, `krum`", "federated.memory.krum.ratio_80_to_5", 0.9, 1.1),
    Row(
        "A round of 20 clients that do not train, times as fast as Flower's simulation",
        "overhead.times_faster_than_flower",
        10,
    ),
    Row(
        "Same, without saving, which Flower's does not do",
        "overhead.times_faster_than_flower_without_saving",
    ),
    Row("Same, peak memory as a share of Flower's", "overhead.memory_share_of_flower"),
    Row(
        "Test Dice that two liars of ten clients cost, `fedavg`", "robustness.dice_lost.fedavg", 0.1
    ),
    Row("Same, `median`", "robustness.dice_lost.median", None, 0.05),
    Row("Same, `trimmed-mean`", "robustness.dice_lost.trimmed_mean", None, 0.05),
    Row("Same, `krum`", "robustness.dice_lost.krum", None, 0.05),
)


def write_table() -> None:
    """Put the table of all kept figures into docs/performance.md, between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(
        ["| what | figure | target | met | machine |", "|---|---|---|---|---|", *map(_line, ROWS)]
    )
    write_atomically(PAGE, f"{before}{BEGIN}\n{table}\n{END}{after}")


def _line(row: Row) -> str:
    part, *keys = row.key.split(".")
    path = RESULTS / f"{part}.json"
    document: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found = reduce(lambda node, key: node.get(key, {}), keys, document.get("figures", {}))
    if not isinstance(found, int | float):
        return f"| {row.what} | not measured | {row.target} | — | — |"
    met = ("yes" if row.is_met(found) else "**no**") if row.has_target else "—"
    return f"| {row.what} | {found:g} | {row.target} | {met} | {document['machine']['machine']} |"
