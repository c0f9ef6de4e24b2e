"""No damage gets through: each mutant is refused in one line, or changes no result.

A fast subset, every kind of damage once, each under one command; with `FEDUNETMM_SLOW=1` over a thousand
mutants. What is known to get through is listed in `known.py`, and has to.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.__main__ import MANY_REPEATS, all_mutants
from tests.mutation.known import KNOWN

ROOT = Path(__file__).parents[2]


def verdicts_of(*arguments: str, folder: Path) -> list[dict[str, str]]:
    """Try mutants in a process of their own, which forks one for each."""
    found = folder / "verdicts.json"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.mutation", *arguments, "--json", str(found)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    sys.stdout.write(ended.stdout[ended.stdout.rindex("\npart ") :])
    verdicts: list[dict[str, str]] = json.loads(found.read_text())
    return verdicts


def failures(verdicts: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    """Pick what got through, and how."""
    return {
        (verdict["mutant"], verdict["command"]): verdict["problem"]
        for verdict in verdicts
        if verdict["outcome"] == "failed"
    }


def test_no_mutant_gets_through(tmp_path):
    verdicts = verdicts_of(folder=tmp_path)
    assert len({verdict["mutant"] for verdict in verdicts}) >= 150
    found = failures(verdicts)
    assert {pair: text for pair, text in found.items() if pair not in KNOWN} == {}
    assert KNOWN.keys() - found.keys() == set(), "mended: take them off the list"


@pytest.mark.skipif(os.environ.get("FEDUNETMM_SLOW") != "1", reason="FEDUNETMM_SLOW is not 1")
def test_no_mutant_of_a_thousand_gets_through(tmp_path):
    verdicts = verdicts_of("--many", folder=tmp_path)
    assert len({verdict["mutant"] for verdict in verdicts}) >= 1000
    kinds = {(name.rsplit(":", 1)[0], command) for name, command in KNOWN}
    found = failures(verdicts)
    unknown = {p: text for p, text in found.items() if (p[0].rsplit(":", 1)[0], p[1]) not in kinds}
    assert unknown == {}


def test_every_mutant_has_a_name_of_its_own():
    for repeats in (1, MANY_REPEATS):
        names = [mutant.name for mutant in all_mutants(repeats)]
        assert len(names) == len(set(names))
    assert len(names) >= 1000
