"""The privacy that rounds with Gaussian noise cost, by Opacus' accountant."""

import math
from importlib.util import find_spec
from typing import Final

from cache_schema.errors import InputError

ORDERS: Final = tuple(1 + 10 ** (k / 50) for k in range(-200, 301))
"""Of Rényi divergence, 1.0001 to a million: the best one depends on noise and number of rounds."""


def has_accountant() -> bool:
    """Tell whether Opacus is installed."""
    return find_spec("opacus") is not None


def spent_epsilon(rounds: int, noise_multiplier: float, delta: float) -> float:
    r"""Compute the $(\varepsilon, \delta)$ differential privacy of some rounds of the Gaussian mechanism.

    Rényi differential privacy, Mironov (2017), arXiv:1702.07476, of order $\alpha$ costs
    $\alpha / 2 z^2$ a round and adds up over rounds; the best order is then converted. Rounds are
    taken as if every client took part in each of them. A client that is drawn at random into some has
    more privacy than this, so it is an upper bound however clients are chosen.

    Args:
        rounds: How many were released.
        noise_multiplier: Standard deviation z of the noise over the most that one client can change.
        delta: Probability with which the bound may fail.

    Returns:
        Epsilon; infinite without noise.

    Raises:
        InputError: If Opacus is not installed.
    """
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    try:
        from opacus.accountants import RDPAccountant  # noqa: PLC0415 - an extra, and it takes seconds
    except ImportError as error:
        raise InputError(
            "the privacy accountant needs Opacus: pip install 'fedunetmm[dp]'"
        ) from error
    accountant = RDPAccountant()
    for _ in range(rounds):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=1.0)
    return max(0.0, float(accountant.get_epsilon(delta, alphas=list(ORDERS))))
