"""The optimisers agree about the maximum, and work in optax's own loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import some_of
from registry import MODELS

import fisher_jax as fj
from fisher_jax.optimizers import Evaluation

ADAM = optax.adam(optax.exponential_decay(0.05, 2000, 0.1))
OPTIMIZERS = {
    "bhhh": fj.optimizers.bhhh(),
    "fisher_scoring": fj.optimizers.fisher_scoring(),
    "lbfgs": optax.lbfgs(),
    "adam": ADAM,
    "scaled by information": optax.chain(
        fj.optimizers.scale_by_information("empirical", damping=0.01),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 1.0, 20)),
    ),
    "natural gradient": fj.optimizers.natural_gradient(largest_divergence=1.0),
    "natural gradient, empirical": fj.optimizers.natural_gradient(kind="empirical", damping=1.0, adaptive=True),
}


def fit(name, **settings):
    model, start, data, given = MODELS[name]
    return fj.fit(model, start, data, given=given, **settings)


# Each optimiser and each model in every run, the other pairs by `make exhaustive`.
IN_EVERY_RUN = [
    ("gamma", "fisher_scoring"),
    ("normal", "natural gradient, empirical"),
    ("normal", "scaled by information"),
    ("normal", "lbfgs"),
    ("logistic", "adam"),
    ("poisson", "bhhh"),
    ("poisson", "fisher_scoring"),
    ("poisson", "natural gradient"),
    ("autoregression", "bhhh"),
]
PAIRS = [
    (name, optimizer)
    for name, optimizer in itertools.product(MODELS, OPTIMIZERS)
    if optimizer not in ("fisher_scoring", "natural gradient") or MODELS[name].model.information is not None
]


@pytest.mark.parametrize(("name", "optimizer"), some_of(PAIRS, *IN_EVERY_RUN))
def test_every_optimiser_ends_within_a_thousandth_of_a_standard_error_of_newton(name, optimizer):
    reference = fit(name)
    other = fit(name, optimizer=OPTIMIZERS[optimizer], tolerance=1e-5)
    assert other.converged, other.status
    errors = reference.layout.flatten(reference.standard_errors())
    distance = reference.layout.flatten(other.params) - reference.layout.flatten(reference.params)
    assert np.max(np.abs(distance / errors)) < 1e-3
    np.testing.assert_allclose(other.decrement, 0.0, atol=1e-3)
    np.testing.assert_allclose(other.covariance(), reference.covariance(), rtol=1e-3, atol=1e-3 * np.max(errors) ** 2)


def waiting_time(rate, y):
    return jnp.log(rate) - rate * y


RATE = fj.Model(waiting_time, constraints=fj.positive)
WAITS = np.random.default_rng(6).exponential(3.0, 60)


def fit_rate(**settings):
    """One parameter, where what an optimiser does is the question: its program compiles in half the time of the normal's."""
    return fj.fit(RATE, 1.0, WAITS, **settings)


def test_a_first_order_optimiser_that_stops_early_is_not_called_converged():
    early = fit_rate(optimizer=UNUSUAL["gradients gathered over steps"], max_steps=20)  # two steps of Adam
    assert early.status is fj.Status.STEP_LIMIT
    assert early.num_steps == 20


def test_an_optimiser_that_leaps_out_of_the_finite_is_said_to():
    wild = fit_rate(optimizer=optax.sgd(1e6))
    assert wild.status in (fj.Status.NOT_FINITE, fj.Status.STALLED, fj.Status.BOUNDARY)
    assert np.all(np.isfinite(wild.free))


PAUSES = optax.join_schedules([optax.constant_schedule(0.0), optax.constant_schedule(0.05)], [10])
UNUSUAL = {
    "gradients gathered over steps": optax.MultiSteps(optax.adam(0.05), 8),
    "a schedule that waits": optax.adam(PAUSES),
    "another line search": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
}


@pytest.mark.parametrize("optimizer", some_of(UNUSUAL, "gradients gathered over steps", "another line search"))
def test_an_optimiser_is_not_thought_finished_because_it_pauses(optimizer):
    fit = fit_rate(optimizer=UNUSUAL[optimizer], tolerance=1e-3)
    assert fit.status is fj.Status.CONVERGED
    np.testing.assert_allclose(fit.params, 1 / WAITS.mean(), rtol=1e-3 / np.sqrt(60))


def test_lbfgs_converges():
    assert fit("normal", optimizer=OPTIMIZERS["lbfgs"]).converged


def test_a_learning_rate_that_fades_is_not_a_success():
    faded = fit_rate(optimizer=optax.sgd(optax.exponential_decay(0.001, 1, 0.5)))
    assert faded.status is fj.Status.STALLED
    assert "learning rate that has faded" in faded.diagnosis()


def test_the_decrement_is_the_distance_in_standard_errors():
    whole = fit("normal")
    start = {
        "loc": float(whole.params["loc"]) + 0.01 * float(whole.standard_errors()["loc"]),
        "scale": float(whole.params["scale"]),
    }
    model, _, data, _ = MODELS["normal"]
    np.testing.assert_allclose(fj.fit(model, start, data, max_steps=0).decrement, 0.01, rtol=1e-3)


def test_newton_converges_quadratically():
    whole = fit("poisson")
    distances = [float(fit("poisson", max_steps=k).decrement) for k in range(1, int(whole.num_steps) + 1)]
    close = [(a, b) for a, b in itertools.pairwise(distances) if 1e-6 < a < 0.1]
    assert close
    assert all(b < a**1.7 for a, b in close)


def test_fisher_scoring_without_an_information_says_what_to_give():
    with pytest.raises(ValueError, match=r"expected information.*Model\(…, information=…\)"):
        fit("autoregression", optimizer=fj.optimizers.fisher_scoring())


def rosenbrock(x):
    return jnp.array([1.0 - x["a"], 10.0 * (x["b"] - x["a"] ** 2)])


def objective(params, kind):
    flat, restore = jax.flatten_util.ravel_pytree(params)
    total = lambda v: jnp.sum(rosenbrock(restore(v)) ** 2)  # noqa: E731
    return Evaluation(-total(flat), -jax.grad(total)(flat), jax.hessian(total)(flat))


def test_newton_minimises_in_a_plain_optax_loop_over_a_pytree():
    optimizer, params = fj.optimizers.newton(), {"a": jnp.array(-1.2), "b": jnp.array(1.0)}
    update = jax.jit(lambda params, state: optimizer.update(params, state, params, objective=objective))
    state = optimizer.init(params)
    for _ in range(60):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose([params["a"], params["b"]], 1.0, rtol=1e-8)
    assert state.decrement < 1e-8


def test_newton_evaluates_once_per_update_and_does_not_move_at_first():
    calls, optimizer, x = [], fj.optimizers.newton(), jnp.array([3.0])

    def counted(params, kind):
        jax.debug.callback(lambda: calls.append(kind))  # each time that it runs
        return Evaluation(-jnp.sum(params**4), -4 * params**3, jnp.diag(12 * params**2))

    update = jax.jit(lambda state: optimizer.update(x, state, x, objective=counted))
    updates, state = update(optimizer.init(x))
    assert updates.tolist() == [0.0]
    updates, state = update(state)
    assert updates[0] < 0
    jax.effects_barrier()
    assert calls == ["observed", "observed"]


def test_newton_never_accepts_a_worse_point():
    model, start, data, _ = MODELS["gamma"]
    values = [float(fj.fit(model, start, data, max_steps=k).log_likelihood) for k in range(15)]
    assert np.all(np.diff(values) > -1e-9)


def test_scale_by_information_is_a_newton_step_on_a_quadratic():
    optimizer = fj.optimizers.scale_by_information()
    x, h = jnp.array([2.0, -1.0]), jnp.array([[2.0, 0.3], [0.3, 1.0]])

    @jax.jit
    def scale(x):
        return optimizer.update(h @ x, optimizer.init(x), x, objective=lambda p, kind: Evaluation(0.0, h @ p, h))[0]

    scaled = scale(x)
    np.testing.assert_allclose(scaled, x, rtol=1e-12)


def test_a_first_radius_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"newton: first_radius=0\.0 must be a positive number"):
        fj.optimizers.newton(first_radius=0.0)
