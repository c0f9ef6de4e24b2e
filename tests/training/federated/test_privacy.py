import math

import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from cache_schema.errors import InputError
from training.federated import privacy
from training.federated.privacy import spent_epsilon


def epsilon_by_formula(rounds, noise, delta):
    """The Rényi bound rounds * a / (2 z²), converted at the best order a."""

    def converted(log_excess):
        order = 1 + math.exp(log_excess)
        return (
            rounds * order / (2 * noise**2)
            + math.log((order - 1) / order)
            - (math.log(delta) + math.log(order)) / (order - 1)
        )

    return minimize_scalar(converted, bounds=(-12, 12), method="bounded").fun


def exact_delta(rounds, noise, epsilon):
    """The Gaussian mechanism's own delta, Balle and Wang (2018), arXiv:1805.06530, theorem 8."""
    mu = math.sqrt(rounds) / noise
    upper = norm.cdf(mu / 2 - epsilon / mu)
    return upper - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


CASES = [(1, 1.0, 1e-5), (30, 1.0, 1e-5), (30, 4.0, 1e-3), (300, 20.0, 1e-6), (5, 0.1, 1e-5)]


@pytest.mark.parametrize(("rounds", "noise", "delta"), CASES)
def test_epsilon_is_the_renyi_bound_at_the_best_order(rounds, noise, delta):
    pytest.importorskip("opacus")
    expected = epsilon_by_formula(rounds, noise, delta)
    spent = spent_epsilon(rounds, noise, delta)
    assert spent == pytest.approx(expected, rel=2e-3)
    assert spent >= expected - 1e-6


@pytest.mark.parametrize(("rounds", "noise", "delta"), CASES[:-1])
def test_epsilon_is_an_upper_bound_and_a_near_one(rounds, noise, delta):
    pytest.importorskip("opacus")
    spent = spent_epsilon(rounds, noise, delta)
    assert exact_delta(rounds, noise, spent) <= delta
    assert exact_delta(rounds, noise, 0.8 * spent) > delta


def test_nothing_is_spent_before_the_first_round_and_everything_without_noise():
    assert spent_epsilon(0, 1.0, 1e-5) == 0.0
    assert spent_epsilon(3, 0.0, 1e-5) == math.inf


def test_without_opacus_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    with pytest.raises(InputError, match=r"pip install 'fedunetmm\[dp\]'"):
        spent_epsilon(1, 1.0, 1e-5)


def test_the_accountant_is_looked_for_without_importing_it(monkeypatch):
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    assert not privacy.has_accountant()
