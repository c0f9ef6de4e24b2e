"""Seconds of work done in turn, so that whatever else the machine does meets all sides alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(
    works: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure works one after the other, A B A B, again and again.

    Args:
        works: Functions by name that do something and return the seconds that count.
        repeats: How often each is measured.
        warm_up: Do each once beforehand without counting it: files are then in the page cache and
            modules imported.

    Returns:
        Seconds of each repeat, by name.
    """
    if warm_up:
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(work())
    return taken


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring measurements."""
    return round(median(a / b for a, b in zip(first, second, strict=True)), 3)


def per_case(taken: Sequence[float], num_cases: int) -> float:
    """Return the median seconds of one case, where each measurement is of several."""
    return round(median(taken) / num_cases, 4)
