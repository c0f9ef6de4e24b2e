"""Measure speed as ratios within one run and keep the figures: `make bench`.

    python -m bench                  everything but `robustness`
    python -m bench prep reading     these parts only
    python -m bench --tiny           small phantoms, nothing kept: whether it runs at all
    python -m bench --table          only write docs/performance.md's table from the kept figures

Real scans are measured too if FEDUNETMM_REAL_DATA and FEDUNETMM_BRATS name their folders.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.cases import Workbench
from bench.document import RESULTS, write_table
from bench.environment import describe_machine
from bench.federated import measure_federated
from bench.memory import measure_memory
from bench.overhead import measure_overhead
from bench.patches import measure_patches
from bench.peers import measure_peers
from bench.prep import measure_prep
from bench.reading import measure_reading
from bench.reuse import measure_reuse
from bench.robustness import measure_robustness
from bench.scaling import measure_scaling
from bench.scoring import measure_scoring
from bench.train import measure_train
from cache_schema.files import write_atomically
from pipeline.quality import BRATS_SHAPE

TINY: Final = (48, 40, 32)
PARTS: Final[dict[str, Callable[[Workbench], dict[str, object]]]] = {
    "prep": measure_prep,
    "scaling": measure_scaling,
    "peers": measure_peers,
    "memory": measure_memory,
    "reuse": measure_reuse,
    "reading": measure_reading,
    "patches": measure_patches,
    "train": measure_train,
    "federated": measure_federated,
    "overhead": measure_overhead,
    "scoring": measure_scoring,
    "robustness": measure_robustness,
}
WHEN_NAMED: Final = {"robustness"}
"""Parts that take an hour on two cores."""


def main() -> None:
    """Measure the parts asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure speed.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="small phantoms, nothing kept")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not arguments.table:
        _measure(
            arguments.parts or [part for part in PARTS if part not in WHEN_NAMED],
            tiny=arguments.tiny,
        )
    if not arguments.tiny:
        write_table()


def _measure(parts: list[str], *, tiny: bool) -> None:
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Workbench(Path(scratch), TINY if tiny else BRATS_SHAPE)
        for name in parts:
            figures = PARTS[name](bench)
            text = json.dumps({"machine": machine, "figures": figures}, indent=1)
            print(name, text, flush=True)
            if not tiny:
                RESULTS.mkdir(exist_ok=True)
                # A GPU's figures are kept beside a processor's.
                kept = f"{name}-gpu" if figures.get("device") == "cuda" else name
                write_atomically(RESULTS / f"{kept}.json", text + "\n")


if __name__ == "__main__":
    main()
