"""Fits of published data against estimates that were published, certified or recomputed by others.

Those said to be recomputed are from 40-digit arithmetic (mpmath): the last digits of what is published there are wrong.
"""

import functools
from decimal import Decimal
from typing import Any

import jax
import numpy as np
import pytest
from data_sets import BEEF_COUNTS, BEEF_SERVINGS, PROBLEMS
from helpers import some_of

import fisher_jax as fj


def assert_printed(received: Any, printed: Any, relative: float = 1e-8) -> None:
    """Compare numbers to printed ones, within half a unit of the last printed place or `relative`, whichever is more.

    `printed` is shaped like `received`, with a string of numbers for each array.
    """

    def compare(text: str, values: Any) -> None:
        expected = [Decimal(number) for number in text.split()]
        values = np.ravel(values)
        assert len(values) == len(expected)
        for value, number in zip(values, expected, strict=True):
            half_unit = 0.5 * 10.0 ** int(number.as_tuple().exponent)
            allowed = max(half_unit, relative * abs(float(number)))
            assert abs(float(value) - float(number)) <= allowed, f"received {value}, printed {number} ± {allowed:.1e}"

    jax.tree.map(compare, printed, received)


def single(leaf: Any) -> np.ndarray:
    """In float32 if it is floating; integers stay."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype.kind == "f" else leaf


@functools.cache
def fitted(name: str) -> fj.Fit:
    """The fit of a problem, which must have converged."""
    problem = PROBLEMS[name]()
    fit = fj.fit(problem.model, problem.start, problem.data, given=problem.given)
    assert fit.status.converged, fit.diagnosis()
    return fit


def test_printed_numbers_are_held_to_their_last_digit():
    assert_printed({"a": np.array([3.05577824, 1.0])}, {"a": "3.0557782 1"})
    for wrong in (3.0557783, np.nan):
        with pytest.raises(AssertionError, match=r"printed 3\.0557782"):
            assert_printed(wrong, "3.0557782")


# Data small enough to print.


def assert_gamma_row(fit):
    assert_printed(fit.params, {"shape": "4.00833903182907", "rate": "0.0544273556123481"})
    assert_printed(fit.log_likelihood, "-1253.62511368925")
    assert_printed(fit.covariance()[0, 1], "0.00158738972898")
    errors = {"shape": "0.341912823709", "rate": "0.00494611370441"}
    assert_printed(fit.standard_errors(), errors)
    assert_printed(fit.standard_errors("expected"), errors)  # the same at the maximum of an exponential family
    assert_printed(fit.standard_errors("empirical"), {"shape": "0.359869325955", "rate": "0.00539198210563"})
    assert_printed(fit.standard_errors("sandwich"), {"shape": "0.327242510872", "rate": "0.00455214182664"})


def test_gamma_standard_errors_of_all_kinds_match_the_recomputed_fitdistrplus_row():
    assert_gamma_row(fitted("gamma"))


def test_frequency_weights_give_the_same_as_repeated_observations():
    problem = PROBLEMS["gamma"]()
    fit = fj.fit(problem.model, problem.start, BEEF_SERVINGS, weights=BEEF_COUNTS)
    assert fit.status.converged, fit.diagnosis()
    assert float(fit.num_observations) == 254
    assert_gamma_row(fit)


def test_weibull_observed_and_expected_standard_errors_match_the_recomputed_fitdistrplus_row():
    fit = fitted("weibull")
    assert_printed(fit.params, {"shape": "2.185612332259", "scale": "83.346668831632"})
    assert_printed(fit.log_likelihood, "-1255.22471986")
    assert_printed(fit.standard_errors(), {"shape": "0.10456642", "scale": "2.5271217"})
    assert_printed(fit.standard_errors("expected"), {"shape": "0.10692568", "scale": "2.51940742"})


def test_lognormal_matches_the_recomputed_fitdistrplus_row():
    fit = fitted("lognormal")
    assert_printed(fit.params, {"mu": "4.1693700895", "sigma": "0.5366095134"})
    assert_printed(fit.log_likelihood, "-1261.319299")
    assert_printed(fit.standard_errors(), {"mu": "0.0336698754", "sigma": "0.0238081972"})


def test_hyperbolic_mean_of_counts_matches_the_recomputed_maximum():
    fit = fitted("ec50")
    assert_printed(fit.params, {"ymax": "24.999422313985", "xhalf": "3.0557782273735"})
    assert_printed(fit.log_likelihood, "-28.6040546738614")
    assert_printed(fit.standard_errors(), {"ymax": "4.226028408025", "xhalf": "1.034349773098"})
    assert_printed(fit.covariance()[0, 1], "-3.7205381176")


@pytest.mark.exhaustive
def test_beta_binomial_with_a_probability_for_each_dilution_matches_recomputed_orobanche():
    fit = fitted("orobanche")
    assert_printed(
        fit.params, {"probability": "0.13221226934577 0.87089274388825 0.83932049976526", "theta": "78.423324203625"}
    )
    assert_printed(
        fit.standard_errors(),
        {"probability": "0.02833663567185 0.02902084017947 0.03173194313685", "theta": "74.2384082885"},
    )
    assert_printed(fit.log_likelihood, "-34.9906769914218")


def test_beta_binomial_with_one_probability_matches_recomputed_orobanche():
    fit = fitted("orobanche, one probability")
    assert_printed(fit.params, {"probability": "0.54345811213446", "theta": "1.5003281619423"})
    assert_printed(fit.standard_errors(), {"probability": "0.07754482452675", "theta": "0.4934500606254"})
    assert_printed(fit.log_likelihood, "-56.2577364868033")


def test_beta_binomial_with_a_theta_for_each_dilution_reaches_the_maximum():
    problem = PROBLEMS["orobanche, a theta each"]()
    # So skewed that 1.5e-8 standard errors from the maximum, the default tolerance, would show in the eighth digit.
    fit = fj.fit(problem.model, problem.start, problem.data, given=problem.given, tolerance=1e-10)
    assert fit.status.converged, fit.diagnosis()
    assert_printed(fit.params["theta"], "45.496218056626 82.024921072249 198.2343352584")
    assert_printed(fit.standard_errors()["theta"], "57.38482781286 130.7024330133 595.2668830429")
    assert_printed(fit.log_likelihood, "-34.8288697590535")


# Estimates; standard errors from the expected and (recomputed) from the observed information; log-likelihood. The
# expected ones of the probit are recomputed too: R's glm takes its weights one iteration before the last.
BEETLES = {
    "logit": ["-60.71745456 34.27032573", "5.18071146 2.91214007", "5.18071146 2.91214007", "-18.71513466"],
    "probit": [
        "-34.93525892 19.72793422",
        "2.647917798618 1.487235040903",
        "2.639503692797 1.484058322955",
        "-18.15889817",
    ],
    "cloglog": ["-39.57231061 22.04116982", "3.24027262 1.79935519", "3.229045973141 1.793088007012", "-14.82223848"],
}


@pytest.mark.parametrize("link", BEETLES)
def test_dose_response_matches_glm_by_the_expected_information_which_for_two_links_is_not_the_observed(link):
    fit = fitted(f"beetles, {link}")
    received = [fit.params, fit.standard_errors("expected"), fit.standard_errors("observed"), fit.log_likelihood]
    assert_printed(received, BEETLES[link])
    assert (BEETLES[link][1] == BEETLES[link][2]) == (link == "logit")  # the canonical link
    assert np.allclose(received[1], received[2], rtol=1e-3) == (link == "logit")


def test_censored_weibull_regression_matches_survreg():
    fit = fitted("ovarian")
    assert_printed(
        fit.params,
        {"intercept": "6.8966931286", "ecog": "-0.3850425493", "rx": "0.5286454963", "log_scale": "-0.1234418107"},
    )
    assert_printed(
        fit.standard_errors(),
        {"intercept": "1.17754722", "ecog": "0.52700178", "rx": "0.52920190", "log_scale": "0.25221310"},
    )
    assert_printed(fit.log_likelihood, "-97.08449317")


# Data that statsmodels ships.


def test_spector_logit_matches_stata():
    fit = fitted("spector, logit")
    assert_printed(fit.params, "2.82611297201 0.0951576702557 2.37868772835 -13.0213483201")
    assert_printed(fit.standard_errors(), "1.26294114526 0.141554207662 1.06456430165 4.93132462871")
    assert_printed(fit.log_likelihood, "-12.8896334653335")


def test_spector_probit_matches_stata():
    fit = fitted("spector, probit")
    assert_printed(fit.params, "1.62581025407 0.051728948442 1.42633236818 -7.45232041607")
    assert_printed(fit.standard_errors(), "0.693882522754 0.083890261293 0.595037919474 2.54247249731")
    assert_printed(fit.log_likelihood, "-12.8188033249334")


@pytest.mark.exhaustive
def test_randhie_poisson_matches_stata():
    fit = fitted("randhie, poisson")
    assert_printed(
        fit.params,
        """-0.052535114675 -0.247086797633 0.035290201794 -0.03457750643 0.271713973711 0.033941474461 -0.012635035534
        0.054056326828 0.206115121809 0.700352877227""",
    )
    assert_printed(
        fit.standard_errors(),
        """0.00288398915279 0.01061725196728 0.00182833684966 0.00161284852954 0.01223913844387 0.00056476496963
        0.00925061122826 0.01530987068312 0.02627928267502 0.01116266712362""",
    )
    assert_printed(fit.log_likelihood, "-62419.588535018")


def test_randhie_nb2_matches_stata():
    fit = fitted("randhie, nb2")
    assert_printed(fit.log_likelihood, "-43383.66207653563")
    assert_printed(fit.params["log_alpha"], "0.256929012449", relative=2e-6)  # Stata stopped 2e-7 SE short
    assert_printed(fit.standard_errors()["log_alpha"], "0.0143932")


@pytest.mark.exhaustive
def test_randhie_nb1_matches_stata():
    fit = fitted("randhie, nb1")
    assert_printed(fit.log_likelihood, "-43278.75612911823")
    assert_printed(fit.params["log_alpha"], "1.316716867203")
    assert_printed(fit.standard_errors()["log_alpha"], "0.0168876692")


def test_ships_observed_and_robust_standard_errors_match_stata():
    fit = fitted("ships")
    assert_printed(fit.params, "0.30633819450439 0.35592229608495 -6.974712802772")
    assert_printed(fit.log_likelihood, "-91.28727940081573")
    assert_printed(fit.standard_errors(), "0.05790831365493 0.12151759298719 0.13252425018256")
    small_sample = np.sqrt(34 / 33)  # Stata's N/(N − 1), on the variance
    robust = small_sample * fit.standard_errors("sandwich")
    assert_printed(robust, "0.09144457613957 0.16103531267836 0.2558675415017")


# Both precisions.


@pytest.mark.parametrize("name", some_of(PROBLEMS, "weibull", "ec50", "ovarian", "beetles, cloglog"))
def test_float32_agrees_with_float64_to_a_hundredth_of_a_standard_error_or_says_why_not(name):
    model, *arrays = PROBLEMS[name]()
    start, data, given = jax.tree.map(single, arrays)
    exact, rounded = fitted(name), fj.fit(model, start, data, given=given)
    assert rounded.free.dtype == np.float32
    away = [
        np.max(np.abs(np.asarray(received - reference)) / error)
        for received, reference, error in zip(
            *map(jax.tree.leaves, (rounded.params, exact.params, exact.standard_errors())), strict=True
        )
    ]
    assert max(away) <= 0.01 or not rounded.converged, (away, rounded.status)
