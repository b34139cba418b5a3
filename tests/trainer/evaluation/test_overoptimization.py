"""KL of best-of-n and Gao's fit: against definitions, planted parameters and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import curve_fit

from quorum_trainer.evaluation.best_of import ladder
from quorum_trainer.evaluation.bootstrap import resampled_means
from quorum_trainer.evaluation.overoptimization import fit_gao, gao_figures, kl_of_best_of

SIZES = ladder(1000)
D = np.sqrt(kl_of_best_of(SIZES))


@pytest.mark.parametrize("n", [1, 2, 10, 500])
def test_kl_is_that_of_the_maximum_of_n_uniforms(n: int) -> None:
    # The maximum has density n x^(n-1) on [0, 1] against 1; quad's own tolerance is 1.5e-8.
    kl, _ = quad(lambda x: n * x ** (n - 1) * (np.log(n) + (n - 1) * np.log(x)), 0, 1)
    assert kl_of_best_of([n])[0] == pytest.approx(kl, abs=1e-7)


def test_planted_parameters_are_found_exactly() -> None:
    curve = 0.3 + D * (0.5 - 0.12 * D)
    alpha, beta = fit_gao(SIZES, curve)
    assert (alpha, beta) == pytest.approx((0.5, 0.12), rel=1e-12)
    figures = gao_figures(SIZES, curve, np.stack([curve, curve]))
    assert figures is not None
    assert figures["r0"] == pytest.approx(0.3)
    assert figures["peak_kl"] == pytest.approx((0.5 / 0.24) ** 2)
    assert figures["r_squared"] == pytest.approx(1)


def test_the_fit_is_scipys() -> None:
    curve = np.random.default_rng(0).normal(size=len(SIZES))
    expected, _ = curve_fit(lambda d, alpha, beta: d * (alpha - beta * d), D[1:], curve[1:] - curve[0], p0=(1, 1))
    # curve_fit stops by its own tolerance of 1e-8.
    assert fit_gao(SIZES, curve) == pytest.approx(expected, rel=1e-5)


def test_the_error_is_what_repeating_the_experiment_gives() -> None:
    """Prompts whose whole curves vary: the spread of the fit over new prompts is what its standard error must say."""
    rng = np.random.default_rng(5)

    def prompts() -> np.ndarray:
        alphas, betas = rng.normal(0.5, 0.3, size=(60, 1)), rng.normal(0.12, 0.1, size=(60, 1))
        return rng.normal(0.3, 0.2, size=(60, 1)) + D * (alphas - betas * D)

    fits = np.array([fit_gao(SIZES, prompts().mean(axis=0)) for _ in range(2000)])
    curves = prompts()
    figures = gao_figures(SIZES, curves.mean(axis=0), resampled_means(curves, np.arange(60)))
    assert figures is not None
    for place, name in enumerate(("alpha", "beta")):
        # The std of 60 numbers is known to 9 %; three times that.
        assert figures[name]["standard_error"] == pytest.approx(fits[:, place].std(), rel=0.28)
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]


def test_what_cannot_be_fitted_is_null() -> None:
    assert gao_figures([1, 2, 3], np.zeros(3), np.zeros((2, 3))) is None
    rising = gao_figures(SIZES, D, np.full((2, len(SIZES)), np.nan))  # a single prompt, no peak
    assert rising is not None
    assert rising["alpha"]["standard_error"] is None
    flat = gao_figures(SIZES, np.zeros(len(SIZES)), np.zeros((2, len(SIZES))))
    assert flat is not None
    assert (flat["peak_kl"], flat["r_squared"]) == (None, None)
