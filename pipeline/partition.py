"""Patients to clients: a Dirichlet draw that always succeeds or explains why it cannot."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cache_schema.errors import InputError
from cache_schema.manifest import Move
from pipeline.cohorts import Case

SKEWS: Final[dict[str, Callable[[Case], str]]] = {
    "quantity": lambda _: "all",
    "grade": lambda case: case.grade,
    "site": lambda case: case.site,
}
"""The category of a patient's case within which patients are dealt by one draw of proportions."""


MAX_ALPHA: Final = 1e6
"""Clients are equal long before; far above, the draw overflows."""


@dataclass(frozen=True)
class Partition:
    """Who got whom.

    Attributes:
        q: Drawn proportions of the clients, for each category.
        patients: Patients of each client, sorted.
        repairs: Moves that gave small clients their least number of cases.
    """

    q: Mapping[str, tuple[float, ...]]
    patients: tuple[tuple[str, ...], ...]
    repairs: tuple[Move, ...]


def partition_patients(
    cases: Sequence[Case],
    *,
    num_clients: int,
    alpha: float,
    skew: str = "quantity",
    min_cases: int = 1,
    seed: int = 0,
) -> Partition:
    r"""Deal the patients of the training cases to clients.

    For each category of the skew draw $q \sim \mathrm{Dirichlet}(\alpha \mathbf{1}_N)$, shuffle its
    patients and give client k about $q_k M$ of them; largest remainders make the counts sum to M.
    With `quantity` there is one category: section 3.1 of the paper. A draw for 20 clients and alpha
    1 often leaves one without patients, so the fewest patients are then moved from the largest
    clients, without drawing again.

    Args:
        cases: Training cases, with patients; all cases of a patient go to one client.
        num_clients: N.
        alpha: Concentration; small values give unequal clients.
        skew: A key of `SKEWS`.
        min_cases: Least number of cases of a client.
        seed: Of the draws.

    Returns:
        The patients of each client.

    Raises:
        InputError: If an option is out of range, or there are too few patients or cases.
    """
    by_patient: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.case_id):
        by_patient.setdefault(case.patient_id, []).append(case)
    _check(len(by_patient), len(cases), num_clients, alpha, min_cases)
    generator = np.random.default_rng([seed, 1])
    categories: defaultdict[str, list[str]] = defaultdict(list)
    for patient in sorted(by_patient):
        categories[SKEWS[skew](by_patient[patient][0])].append(patient)
    q: dict[str, tuple[float, ...]] = {}
    clients: list[list[str]] = [[] for _ in range(num_clients)]
    for category in sorted(categories):
        draw = generator.dirichlet(np.full(num_clients, alpha))
        q[category] = tuple(draw.tolist())
        shuffled = generator.permutation(categories[category]).tolist()
        stops = np.cumsum(largest_remainder(draw, len(shuffled))).tolist()
        for client, start, stop in zip(clients, [0, *stops], stops, strict=False):
            client.extend(shuffled[start:stop])
    num_cases = {patient: len(owned) for patient, owned in by_patient.items()}
    repairs = _repair(clients, num_cases, min_cases)
    return Partition(q, tuple(tuple(sorted(client)) for client in clients), repairs)


def _check(patients: int, cases: int, num_clients: int, alpha: float, min_cases: int) -> None:
    if num_clients < 1:
        raise InputError(f"--clients {num_clients} is not at least 1")
    if not 0 < alpha <= MAX_ALPHA:
        raise InputError(f"--alpha {alpha} is not above 0 and at most {MAX_ALPHA:g}")
    if min_cases < 0:
        raise InputError(f"--min-cases {min_cases} is negative")
    if min_cases > 0 and num_clients > patients:
        raise InputError(
            f"--clients {num_clients} is more than the {patients} training patients; a patient is on "
            f"one client only, so use at most {patients} clients"
        )
    if num_clients * min_cases > cases:
        raise InputError(
            f"--clients {num_clients} with --min-cases {min_cases} needs {num_clients * min_cases} "
            f"training cases, there are {cases}; lower one of the two"
        )


def largest_remainder(shares: Sequence[float] | np.ndarray, total: int) -> list[int]:
    """Round shares of a total to whole numbers that sum to it exactly.

    Args:
        shares: Non-negative, summing to 1.
        total: What is shared out.

    Returns:
        Each share rounded down, plus one for the largest remainders; ties go to the first.
    """
    exact = np.asarray(shares, np.float64) * total
    counts = np.floor(exact).astype(np.int64)
    remainders = np.argsort(counts - exact, kind="stable")
    counts[remainders[: total - int(counts.sum())]] += 1
    return [int(count) for count in counts]


def _repair(
    clients: list[list[str]], num_cases: Mapping[str, int], min_cases: int
) -> tuple[Move, ...]:
    """Move patients from the largest clients until every client has `min_cases` cases."""
    sizes = [sum(num_cases[patient] for patient in client) for client in clients]
    moves: list[Move] = []

    def movable(client: int) -> list[str]:
        spare = sizes[client] - min_cases
        return [name for name in clients[client] if num_cases[name] <= spare]

    for target in range(len(clients)):
        while sizes[target] < min_cases:
            giving = [(sizes[k], -k, k) for k in range(len(clients)) if k != target and movable(k)]
            if not giving:
                raise InputError(
                    f"--min-cases {min_cases} cannot be met for {len(clients)} clients: no client can "
                    "give a patient away and keep that many; lower --min-cases or --clients"
                )
            source = max(giving)[2]
            # Client lists are in seeded random order, so the first of the largest is a fair choice.
            patient = max(movable(source), key=lambda name: num_cases[name])
            clients[source].remove(patient)
            clients[target].append(patient)
            sizes[source] -= num_cases[patient]
            sizes[target] += num_cases[patient]
            moves.append(Move(patient_id=patient, source=source, target=target))
    return tuple(moves)
