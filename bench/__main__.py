"""Measure speed as ratios within one run, and keep the figures: `make bench`."""

import json
import os
import tempfile
from pathlib import Path

from bench.cases import find_cases
from bench.prep import measure_prep
from bench.reading import measure_reading

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure preparation and reading on the same cases, and write a JSON file for each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source, cases = find_cases(folder, os.environ.get("FEDUNETMM_REAL_DATA"))
        shard, prep = measure_prep(cases, folder)
        figures = {"prep": prep, "reading": measure_reading(shard, folder)}
    RESULTS.mkdir(exist_ok=True)
    for name, values in figures.items():
        document = {"cases": source, **values}
        (RESULTS / f"{name}.json").write_text(
            json.dumps(document, indent=1) + "\n", encoding="utf-8"
        )
        print(name, json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
