"""One fit with many rows, dealt to lanes, equals the compiled loop over all of them at once."""

import jax
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax import Status, families
from fisher_jax.fitting.maximization import MOST_ROWS

ROWS = MOST_ROWS + 37
RNG = np.random.default_rng(11)
DATA = RNG.gumbel(4.0, 0.5, ROWS)
START = {"loc": 1.0, "scale": 1.0}
WEIGHTS = RNG.integers(0, 3, ROWS).astype(float)


@pytest.mark.parametrize(
    ("optimizer", "weights"),
    [
        pytest.param(None, None, id="newton, alike"),
        pytest.param(fj.optimizers.fisher_scoring(), WEIGHTS, id="scoring, weighted"),
        pytest.param(None, WEIGHTS, marks=pytest.mark.exhaustive, id="newton, weighted"),
        pytest.param(fj.optimizers.fisher_scoring(), None, marks=pytest.mark.exhaustive, id="scoring, alike"),
    ],
)
def test_rows_dealt_to_lanes_give_the_fit_of_the_compiled_loop(optimizer, weights):
    dealt = fj.fit(families.gumbel, START, DATA, weights=weights, optimizer=optimizer)
    loop = jax.jit(lambda y: fj.fit(families.gumbel, START, y, weights=weights, optimizer=optimizer))(DATA)
    assert dealt.engine == "rows"
    assert dealt.status == loop.status == Status.CONVERGED
    assert dealt.num_observations == loop.num_observations
    errors = loop.standard_errors()
    for name in START:
        assert abs(dealt.params[name] - loop.params[name]) < 1e-8 * errors[name]
    np.testing.assert_allclose(dealt.log_likelihood, loop.log_likelihood, rtol=1e-12)
    for kind in ("observed", "expected", "empirical", "sandwich"):
        np.testing.assert_allclose(dealt.covariance(kind), loop.covariance(kind), rtol=1e-8)


def test_a_fixed_parameter_and_an_observation_to_blame_are_seen_among_many_rows():
    model = fj.Model(families.gumbel.log_density, constraints={"loc": fj.fixed, "scale": fj.positive})
    fit = fj.fit(model, {"loc": 4.0, "scale": 2.0}, DATA)
    assert (fit.engine, fit.names, fit.status) == ("rows", ("scale",), Status.CONVERGED)
    bad = DATA.copy()
    bad[MOST_ROWS + 5] = np.nan
    fit = fj.fit(families.gumbel, START, bad)
    assert fit.status == Status.BAD_START
    assert fit.suspect == MOST_ROWS + 5
