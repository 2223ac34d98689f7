"""The natural gradient: one path in every parametrisation, by matrix or by products, and what its state says of each step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from registry import MODELS

import fisher_jax as fj
from fisher_jax.optimizers import Evaluation
from fisher_jax.optimizers.natural import natural_gradient

RNG = np.random.default_rng(5)
Y = RNG.gamma(2.5, 0.8, 60)
BY_RATE = fj.linked(fj.families.gamma, lambda p: {"shape": p["shape"], "rate": p["rate"]})
BY_MEAN = fj.linked(
    fj.families.gamma,
    lambda p: {"shape": jnp.exp(p["log shape"]), "rate": jnp.exp(p["log shape"]) / p["mean"]},
)
START = {"by rate": {"shape": 1.0, "rate": 1.0}, "by mean": {"log shape": 0.0, "mean": 1.0}}
FLOW = 1.0  # for how long the flow is followed


def loss_of(model, data, given=None):
    return lambda params: -jnp.mean(jax.tree.leaves(log_densities(model, params, data, given))[0])


def log_densities(model, params, data, given):
    if given is None:
        return jax.vmap(model.log_density, (None, 0))(params, data)
    return jax.vmap(model.log_density, (None, 0, 0))(params, data, given)


@functools.partial(jax.jit, static_argnums=0)
def path(model, params, step):
    """400 steps of this length along the natural gradient, as (shape, rate)."""
    optimizer, loss = natural_gradient(tolerance=1e-13), loss_of(model, Y)

    def one(carry, _):
        params, state = carry
        information = fj.information_operator(model, params)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, information=information)
        params = jax.tree.map(lambda leaf, update: leaf + step * update, params, updates)
        return (params, state), model.log_density.predict(params)

    params = jax.tree.map(jnp.asarray, params)
    found = jax.lax.scan(one, (params, optimizer.init(params)), None, 400)[1]
    return jnp.stack([found["shape"], found["rate"]], axis=1)


def at_common_times(model, start):
    """The path at the same ten times by steps of three lengths."""
    return [path(model, start, FLOW / count)[count // 10 - 1 : count : count // 10] for count in (100, 200, 400)]


def test_in_the_small_step_limit_two_parametrisations_take_the_same_path():
    by_rate, by_mean = at_common_times(BY_RATE, START["by rate"]), at_common_times(BY_MEAN, START["by mean"])
    apart = [np.max(np.abs(a - b)) for a, b in zip(by_rate, by_mean, strict=True)]
    np.testing.assert_allclose([apart[0] / apart[1], apart[1] / apart[2]], 2.0, rtol=0.1)  # linearly with the step
    limits = [(8 * fine - 6 * middle + coarse) / 3 for coarse, middle, fine in (by_rate, by_mean)]
    np.testing.assert_allclose(limits[0], limits[1], rtol=1e-6)
    assert np.max(np.abs(limits[0][-1] - limits[0][0])) > 0.3  # it has gone somewhere


def test_the_plain_gradient_takes_another_path_in_each_parametrisation():
    @functools.partial(jax.jit, static_argnums=0)
    def direction(model, start):
        slope = jax.grad(loss_of(model, Y))(start)
        _, push = jax.jvp(model.log_density.predict, (start,), (jax.tree.map(jnp.negative, slope),))
        return push["shape"], push["rate"]

    ends = direction(BY_RATE, START["by rate"]), direction(BY_MEAN, START["by mean"])
    assert np.linalg.norm(np.subtract(*ends)) > 0.3 * np.linalg.norm(ends[0])


X = RNG.normal(size=(50, 2))
TARGET = np.sin(2 * X[:, 0]) + 0.1 * RNG.normal(size=50)


def small_network(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]


REGRESSION = fj.linked(fj.families.normal, lambda p, x: {"loc": small_network(p, x), "scale": jnp.asarray(0.3)})
NETWORK = {"in": RNG.normal(size=(2, 3)), "bias": RNG.normal(size=3), "out": RNG.normal(size=3)}
MIXING = np.array([[2.0, 0.5, 0.0], [0.0, 0.3, 0.1], [1.0, 0.0, 1.5]])


def mixed(params):
    """Other coordinates of the same network: scaled inputs, a shifted and scaled bias, mixed outputs."""
    return {"in": 3.0 * params["in"], "bias": 0.2 * params["bias"] + 1.0, "out": jnp.asarray(MIXING) @ params["out"]}


MIXED = fj.linked(fj.families.normal, lambda p, x: {"loc": small_network(mixed(p), x), "scale": jnp.asarray(0.3)})


@functools.partial(jax.jit, static_argnums=(0, 2))
def one_step(model, params, optimizer):
    params = jax.tree.map(jnp.asarray, params)
    gradient = jax.grad(loss_of(model, TARGET, X))(params)
    information = fj.information_operator(model, params, given=X)
    return optimizer.update(gradient, optimizer.init(params), params, information=information)


def test_without_a_matrix_the_step_is_the_same_in_other_coordinates():
    exact = natural_gradient(tolerance=1e-12, max_products=200)
    other = {
        "in": NETWORK["in"] / 3.0,
        "bias": (NETWORK["bias"] - 1.0) / 0.2,
        "out": np.linalg.solve(MIXING, NETWORK["out"]),
    }
    here, state = one_step(REGRESSION, NETWORK, exact)
    there, _ = one_step(MIXED, other, exact)
    _, transform_covariance = jax.jvp(mixed, (jax.tree.map(jnp.asarray, other),), (there,))
    assert state.solved
    for name in here:
        np.testing.assert_allclose(transform_covariance[name], here[name], rtol=1e-6, atol=1e-6)


def dense_objective(params, kind):
    assert kind == "expected"
    matrix = fj.fisher_information(REGRESSION, params, given=X).matrix
    return Evaluation(jnp.zeros(()), jnp.zeros(matrix.shape[0]), matrix)


def test_by_matrix_and_by_products_the_step_is_the_same():
    settings = {"damping": 0.1, "largest_divergence": 0.01, "tolerance": 1e-12, "max_products": 200}
    params = jax.tree.map(jnp.asarray, NETWORK)
    optimizer = natural_gradient(0.7, **settings)
    free, state = one_step(REGRESSION, params, optimizer)

    @jax.jit
    def by_matrix(params):
        gradient = jax.grad(loss_of(REGRESSION, TARGET, X))(params)
        return optimizer.update(gradient, optimizer.init(params), params, objective=dense_objective)

    dense, told = by_matrix(params)
    for name in free:
        np.testing.assert_allclose(free[name], dense[name], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(state.divergence, told.divergence, rtol=1e-9)
    np.testing.assert_allclose(told.divergence, 0.01, rtol=1e-12)
    flat, _ = jax.flatten_util.ravel_pytree(dense)
    matrix = np.asarray(dense_objective(params, "expected").information)
    np.testing.assert_allclose(0.5 * flat @ matrix @ flat, 0.01, rtol=1e-10)
    assert told.num_products == 0
    assert 0 < told.shortening < 1


def test_a_solve_that_is_cut_short_is_told_and_still_descends():
    updates, state = one_step(REGRESSION, NETWORK, natural_gradient(max_products=2))
    assert (state.num_products, state.num_unsolved) == (2, 1)
    assert not state.solved
    assert state.residual > 1e-3
    gradient = jax.jit(jax.grad(loss_of(REGRESSION, TARGET, X)))(NETWORK)
    assert sum(jnp.sum(gradient[name] * updates[name]) for name in gradient) < 0
    # The divergence of a step cut short, which is told without a further product.
    operator = fj.information_operator(REGRESSION, NETWORK, given=X)
    image = operator @ updates
    direct = 0.5 * sum(jnp.sum(image[name] * updates[name]) for name in image)
    np.testing.assert_allclose(state.divergence, direct, rtol=1e-8)


def test_convergence_is_linear_at_the_rate_that_the_learning_rate_leaves():
    model, start, data, given = MODELS["poisson"]  # where expected and observed information agree
    optimizer = natural_gradient(0.5)
    distances = [
        float(fj.fit(model, start, data, given=given, optimizer=optimizer, max_steps=k).decrement) for k in (10, 11, 12)
    ]
    np.testing.assert_allclose([b / a for a, b in itertools.pairwise(distances)], 0.5, rtol=0.02)


def test_the_divergence_is_that_between_the_models():
    model, params = fj.linked(fj.families.poisson, lambda p: {"rate": jnp.exp(p)}), jnp.asarray(1.0)
    optimizer = natural_gradient(largest_divergence=1e-4)

    @jax.jit
    def update(params):
        gradient = jax.grad(loss_of(model, jnp.array([9.0, 7.0])))(params)
        information = fj.information_operator(model, params)
        return optimizer.update(gradient, optimizer.init(params), params, information=information)

    step, _ = update(params)
    before, after = jnp.exp(params), jnp.exp(params + step)
    divergence = before * (params - (params + step)) + after - before
    np.testing.assert_allclose(divergence, 1e-4, rtol=0.01)


def singular(params, kind):
    return Evaluation(jnp.zeros(()), jnp.zeros(2), jnp.array([[1.0, 1.0], [1.0, 1.0]]))


def test_a_singular_matrix_gives_nan_or_with_adaptive_damping_waits_until_it_is_none():
    x, gradient = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.5])
    plain = natural_gradient()
    updates, state = plain.update(gradient, plain.init(x), x, objective=singular)
    assert np.all(np.isnan(updates))
    assert not state.solved
    careful, value_fn = natural_gradient(damping=1e-16, adaptive=True), lambda x: jnp.sum(gradient * x)
    update = jax.jit(lambda state: careful.update(gradient, state, x, objective=singular, value_fn=value_fn))
    state = careful.init(x)
    for _ in range(20):
        before = state.damping
        updates, state = update(state)
        if not state.rejected:
            break
        assert updates.tolist() == [0.0, 0.0]
        np.testing.assert_allclose(state.damping, 4 * before)
    assert np.all(np.isfinite(updates))
    assert np.any(updates != 0)


@pytest.mark.parametrize(
    ("height", "ratio", "factor"), [(0.5, 1.0, 2 / 3), (0.75, 0.5, 1.0), (0.9, 0.2, 3 / 2), (1.1, -0.2, 4.0)]
)
def test_the_damping_follows_how_well_the_decrease_was_foretold(height, ratio, factor):
    optimizer, x, damping = natural_gradient(damping=1e-6, adaptive=True), jnp.array([1.0]), 1e-6
    value_fn = lambda new: jnp.where(new[0] < 0.5, height, 1.0)  # noqa: E731
    objective = lambda x, kind: Evaluation(jnp.zeros(()), x, jnp.eye(1))  # noqa: E731
    updates, state = optimizer.update(x, optimizer.init(x), x, objective=objective, value_fn=value_fn, value=1.0)
    np.testing.assert_allclose(state.reduction_ratio, ratio, rtol=1e-5)  # of a half, which a parabola would lose
    np.testing.assert_allclose(state.damping, factor * damping, rtol=1e-6)
    assert bool(state.rejected) is (ratio < 0)
    assert (updates[0] == 0.0) == (ratio < 0)


def parabola(x, kind):
    return Evaluation(jnp.zeros(()), x, jnp.eye(x.shape[0], dtype=x.dtype))


def test_neither_a_step_foretold_to_raise_the_loss_nor_one_of_nan_is_taken():
    x, height = jnp.array([1.0]), lambda x: 0.5 * jnp.sum(x**2)
    far = natural_gradient(3.0, damping=1e-6, adaptive=True)
    updates, state = far.update(x, far.init(x), x, objective=parabola, value_fn=height)
    assert updates[0] == 0.0
    assert state.rejected
    np.testing.assert_allclose(state.damping, 4e-6)
    indefinite = lambda x, kind: Evaluation(jnp.zeros(()), x, -jnp.eye(1))  # noqa: E731
    careful = natural_gradient(damping=1e-6, adaptive=True)
    updates, state = careful.update(x, careful.init(x), x, objective=indefinite, value_fn=lambda x: jnp.nansum(x) - 1.0)
    assert updates[0] == 0.0
    assert state.rejected


def test_the_damping_never_comes_to_nothing_from_which_it_could_not_grow():
    x, optimizer = jnp.ones(1, jnp.float32), natural_gradient(damping=0.1, adaptive=True)

    def step(state, _):
        height = lambda x: 0.5 * jnp.sum(x**2)  # noqa: E731
        return optimizer.update(x, state, x, objective=parabola, value_fn=height)[1], None

    assert jax.lax.scan(step, optimizer.init(x), None, 400)[0].damping > 1e-20


def test_settings_may_be_arrays_or_traced_as_optax_injects_them():
    assert natural_gradient(jnp.asarray(0.5)) is natural_gradient(0.5)
    x = jnp.ones(1)

    @jax.jit
    def injected(rate, damping):
        optimizer = natural_gradient(rate, damping=damping)
        return optimizer.update(x, optimizer.init(x), x, objective=parabola)

    updates, _ = injected(0.5, 1.0)
    np.testing.assert_allclose(updates, [-0.25])


def test_what_is_fixed_does_not_move():
    model = fj.linked(
        fj.families.normal, lambda p, x: {"loc": p["slope"] * x, "scale": p["scale"]}, constraints={"scale": fj.fixed}
    )
    params, x = {"slope": jnp.asarray(0.0), "scale": jnp.asarray(2.0)}, jnp.array([1.0, 2.0])
    optimizer = natural_gradient(largest_divergence=100.0)
    information = fj.information_operator(model, params, given=x)
    for unused in (1.0, np.nan):
        gradient = {"slope": jnp.asarray(1.0), "scale": jnp.asarray(unused)}
        updates, state = optimizer.update(gradient, optimizer.init(params), params, information=information)
        assert updates["scale"] == 0.0
        np.testing.assert_allclose(updates["slope"], -1.0 / (2.5 / 4.0))
        np.testing.assert_allclose(state.divergence, 0.5 / (2.5 / 4.0))


def test_the_same_settings_are_the_same_optimiser():
    assert natural_gradient(0.5, damping=0.1) is natural_gradient(0.5, damping=0.1)
    assert natural_gradient(0.5) is not natural_gradient(0.5, kind="empirical")


# A network of some numbers, float32, minibatches, inside jit and scan --------------------------------------------------

ROWS, BATCH = 500, 125


def wide_network(params, x):
    *hidden, last = (params[name] for name in sorted(params))
    for layer in hidden:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return (x @ last["weight"] + last["bias"])[..., 0]


WIDE = fj.linked(fj.families.normal, lambda p, x: {"loc": wide_network(p, x), "scale": jnp.float32(0.1)})


@functools.cache
def surface():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (ROWS, 2))
    y = np.sin(4 * x[:, 0] + 2 * np.sin(3 * x[:, 1])) * np.cos(3 * x[:, 1]) + 0.1 * rng.normal(size=ROWS)
    sizes = (2, 40, 40, 1)
    params = {
        f"layer {k}": {
            "weight": (rng.normal(size=(a, b)) / a**0.5).astype(np.float32),
            "bias": np.zeros(b, np.float32),
        }
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    }
    return params, x.astype(np.float32), y.astype(np.float32)


def error_of(params, y, x):
    """Mean loss in nats, but for its constant."""
    return 50.0 * jnp.mean((y - jax.vmap(wide_network, (None, 0))(params, x)) ** 2)


OPERATORS = {
    "linked": lambda params, y, x, key: fj.information_operator(WIDE, params, given=x),
    "sampled": lambda params, y, x, key: fj.information_operator(WIDE, params, fj.MonteCarlo(key, 2, "outer"), given=x),
    "empirical": lambda params, y, x, key: fj.information_operator(WIDE, params, kind="empirical", data=y, given=x),
}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def trained(optimizer_of, how, count, rate=1.0):
    """The loss on all rows after each step on a minibatch, and the state, with the optimiser of this rate."""
    optimizer = optimizer_of(rate)
    params, x, y = jax.tree.map(jnp.asarray, surface())

    def step(carry, k):
        params, state = carry
        rows = jax.random.choice(jax.random.fold_in(jax.random.key(1), k), ROWS, (BATCH,), replace=False)
        value_fn = lambda params: error_of(params, y[rows], x[rows])  # noqa: E731
        value, gradient = jax.value_and_grad(value_fn)(params)
        extra = {}
        if how is not None:
            information = OPERATORS[how](params, y[rows], x[rows], jax.random.fold_in(jax.random.key(2), k))
            extra = {"information": information, "value": value, "value_fn": value_fn}
        updates, state = optimizer.update(gradient, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), error_of(params, y, x)

    (_, state), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(count))
    return losses, state


ENOUGH = 2.0  # nats; noise alone leaves a half, the start is at 13


def steps_to(losses):
    return int(np.argmax(losses <= ENOUGH)) + 1 if np.any(losses <= ENOUGH) else np.inf


def test_a_network_takes_a_third_of_the_steps_of_adam_at_its_best():
    adam = min(steps_to(trained(optax.adam, None, 300, rate)[0]) for rate in (0.01, 0.03, 0.1))
    natural = functools.partial(natural_gradient, damping=0.1, adaptive=True, max_products=30)
    losses, state = trained(natural, "linked", 30)
    assert 3 * steps_to(losses) < adam < np.inf
    assert losses.dtype == jnp.float32
    assert state.damping.dtype == jnp.float32


@pytest.mark.parametrize("how", ["sampled", "empirical"])
def test_a_network_learns_with_either_other_information_too(how):
    kind = "empirical" if how == "empirical" else "expected"
    natural = functools.partial(natural_gradient, kind=kind, damping=0.1, adaptive=True, max_products=30)
    losses, state = trained(natural, how, 30)
    assert losses[-1] < 0.3 * losses[0]
    assert state.num_updates == 30
    assert state.num_products <= 30


def test_an_update_by_products_lowers_for_cuda():
    model = fj.Model(lambda p, y: norm.logpdf(y, p["loc"], jnp.exp(p["log scale"])))
    optimizer, y = natural_gradient(kind="empirical", damping=0.1), jnp.array([1.0, 2.0])

    def update(params):
        information = fj.information_operator(model, params, kind="empirical", data=y)
        return optimizer.update(params, optimizer.init(params), params, information=information)

    params = {"loc": jnp.asarray(0.0), "log scale": jnp.asarray(0.0)}
    assert jax.export.export(jax.jit(update), platforms=["cuda"])(params).mlir_module()
