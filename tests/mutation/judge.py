"""What became of a mutant: refused, the same as without damage, or a finding."""

import re
import shutil
import stat
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.mutation.commands import COMMANDS, MOST_BYTES, Command, Ended, run, table_of
from tests.mutation.mutant import Mutant

LONGEST_LINE = 600
LARGE_BYTES = 10_000_000
"""A larger file is known by its size and time."""

GENERIC = "(--debug shows where)"
FOREIGN = re.compile(r"; (setting|leaving) |Warning: |^\s+warnings?\.warn|HDF5-DIAG")
"""What libraries say, which nobody asked."""

Results = dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant under one command.

    Attributes:
        mutant: Its name.
        part: Of the mutant.
        command: That was run.
        outcome: `refused`, `same`, `other`, or `failed`.
        problem: Why it failed; empty otherwise.
    """

    mutant: str
    part: str
    command: str
    outcome: str
    problem: str = ""


def snapshot(folder: Path) -> dict[str, str]:
    """Say what lies in a folder: kind and content of every entry, links not followed."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and path.lstat().st_size > LARGE_BYTES:
            content = f"{path.lstat().st_size} {path.lstat().st_mtime_ns}"
        elif stat.S_ISREG(mode):
            content = sha256(path.read_bytes()).hexdigest()
        else:
            content = str(path.readlink()) if stat.S_ISLNK(mode) else ""
        entries[path.relative_to(folder).as_posix()] = f"{stat.S_IFMT(mode):o} {content}"
    return entries


def results_of(world: Path, command: Command, ended: Ended) -> Results:
    """Collect what a command gave: its tables, and the bytes of the files that it wrote."""
    files = {
        path.relative_to(world).as_posix(): sha256(_timeless(path)).hexdigest()
        for pattern in command.results
        for path in sorted(world.glob(pattern))
        if path.is_file()
    }
    return files | ({"stdout": table_of(ended.stdout)} if command.is_table else {})


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    return table_of(content.decode()).encode() if path.suffix == ".html" else content


def try_command(world: Path, name: str) -> tuple[Ended, Results, list[str]]:
    """Run a command, and list what it changed that it has nothing to do with."""
    command = COMMANDS[name]
    before = snapshot(world)
    ended = run(world, command.arguments)
    after = snapshot(world)
    changed = sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
    foreign = [path for path in changed if path.split("/")[0] not in command.writes]
    return ended, results_of(world, command, ended), foreign


def judge(mutant: Mutant, command: str, sound: Path, expected: Results) -> Verdict:
    """Damage a copy of the sound world, run a command on it, and say what became of it.

    Args:
        mutant: What to damage.
        command: What to run.
        sound: The undamaged world.
        expected: What the command gives there.
    """
    world = sound.with_name("damaged")
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(sound, world, symlinks=True)
    mutant.apply(world)
    ended, results, foreign = try_command(world, command)
    problem = _problem(ended, foreign)
    outcome = "failed"
    if not problem:
        outcome = "refused" if ended.code else "same" if results == expected else "other"
        problem = _surprise(mutant, outcome, results, expected)
        outcome = "failed" if problem else outcome
    return Verdict(mutant.name, mutant.part, command, outcome, problem)


def _surprise(mutant: Mutant, outcome: str, results: Results, expected: Results) -> str:
    """Say what is wrong about an outcome in which nothing broke."""
    if mutant.expected == "refused" and outcome != "refused":
        return f"accepted ({outcome})"
    if mutant.expected == "refused or same" and outcome == "other":
        differing = [
            k for k in results.keys() | expected.keys() if results.get(k) != expected.get(k)
        ]
        return f"another result with exit 0: {', '.join(sorted(differing)[:3])}"
    return ""


def _problem(ended: Ended, foreign: list[str]) -> str:
    """Say what must never happen, whatever is damaged; empty if it did not."""
    lines = ended.stderr.splitlines()
    said = [line for line in lines if line.startswith(("error:", "Usage:"))]
    last = lines[-1] if lines else ""
    checks = {
        f"changed {', '.join(foreign[:3])}": bool(foreign),
        f"ended by signal {-ended.code} (14 is a hang)": ended.code < 0,
        f"took {ended.peak_bytes / 2**30:.1f} GB": ended.peak_bytes > MOST_BYTES,
        f"traceback: {last}": "Traceback" in ended.stderr + ended.stdout,
        f"generic: {last}": GENERIC in ended.stderr,
        f"exit code {ended.code}": ended.code not in (0, 1, 2, 3),
        f"a line of {max(map(len, lines), default=0)} characters: {last[:80]}": any(
            len(line) > LONGEST_LINE for line in lines
        ),
        f"{len(said)} errors": ended.code in (1, 2) and len(said) != 1,
        f"foreign words: {next(filter(FOREIGN.search, lines), '')[:90]}": any(
            map(FOREIGN.search, lines)
        ),
    }
    return next((text for text, is_so in checks.items() if is_so), "")


def table(verdicts: list[Verdict]) -> str:
    """Count outcomes by part."""
    outcomes = ("refused", "same", "other", "failed")
    counts = Counter((verdict.part, verdict.outcome) for verdict in verdicts)
    mutants = Counter(part for part, _ in {(v.part, v.mutant) for v in verdicts})
    rows = [("part", "mutants", "runs", *outcomes)]
    for part in sorted(mutants):
        own = [counts[part, outcome] for outcome in outcomes]
        rows.append((part, str(mutants[part]), str(sum(own)), *map(str, own)))
    totals = [sum(counts[part, outcome] for part in mutants) for outcome in outcomes]
    rows.append(("all", str(sum(mutants.values())), str(sum(totals)), *map(str, totals)))
    return "\n".join(f"{row[0]:<12}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)
