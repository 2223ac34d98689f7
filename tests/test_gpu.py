"""The kernel for GPUs without one: run by the rules of its language it equals the CPU's, and it lowers for CUDA."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from densities import DENSITIES
from families_registry import FAMILIES, OF_DIFFERENT_PARTS
from helpers import some_of
from jax.experimental.pallas import triton
from jax.scipy.stats import norm

import fisher_jax as fj
from fisher_jax import Status
from fisher_jax.fitting import chunks, engine, gpu, workers
from fisher_jax.fitting.row_program import Plan
from fisher_jax.models import dataset
from fisher_jax.models.model import as_model, flatten_parameters
from fisher_jax.models.programs import programs_of

RNG = np.random.default_rng(8)


def normal(params, y):
    return norm.logpdf(y, params["loc"], jnp.exp(params["log_scale"]))


def new_exponential():
    """A function with an object of its own at each call, which no program was compiled for."""
    own = object()
    return lambda log_rate, y: log_rate - jnp.exp(log_rate) * y if own else 0.0


exponential = new_exponential()


def fit_on_gpu(*arguments, **options):
    """`fit_batch` as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "platform", lambda: "gpu")
        return fj.fit_batch(*arguments, **options)


def assert_like_the_cpus(*arguments, within=1e-10, **options):
    """Every status, and every number where a maximum was found, in standard errors; the two results."""
    ours, cpus = fit_on_gpu(*arguments, **options), fj.fit_batch(*arguments, **options)
    # The CPU's own kernel is compared with the host's steps in test_engine.py and test_batch.py.
    assert (ours.engine, cpus.engine) == ("kernel", "host")
    codes = [fits.status_code.copy() for fits in (ours, cpus)]
    if ours.free.dtype == np.float32:  # whose last step may be lost in rounding on one and not on the other
        for code in codes:
            code[code == Status.CONVERGED_TO_ROUNDING] = Status.CONVERGED
    np.testing.assert_array_equal(*codes)
    np.testing.assert_array_equal(ours.num_observations, cpus.num_observations)
    good = cpus.converged
    assert np.any(good)
    apart = (ours.free - cpus.free)[good].astype(float)
    distance = np.sqrt(np.abs(np.einsum("bi,bij,bj->b", apart, cpus.curvature[good].astype(float), apart)))
    assert np.max(distance) < within
    scale = np.sqrt(np.abs(np.einsum("bi,bj->bij", *(np.diagonal(cpus.curvature[good], axis1=1, axis2=2),) * 2)))
    assert np.max(np.abs((ours.curvature - cpus.curvature)[good]) / scale) < 1e4 * within
    np.testing.assert_allclose(ours.log_likelihood[good], cpus.log_likelihood[good], rtol=1e3 * within)
    return ours, cpus


# --- the same as on a CPU -------------------------------------------------------------------------------------------


def by_case(params, y):
    """Of an observation (value, case), what ends in another way in each case."""
    a, b, value = params["a"], params["b"], y["value"]
    regular = norm.logpdf(value, a, 1.0) - 0.5 * (b - 1.0) ** 2
    cases = [
        regular,
        regular,
        (regular + 1e9) - 1e9,
        -jnp.sqrt((value - a) ** 2) - b**2,
        jax.nn.log_sigmoid(a) - b**2,
        -((a + b - value) ** 2),
        a**2 - b**2,
        -10.0 * jnp.abs(a - value) - 0.1 * (a - value) ** 2 - b**2,
    ]
    return jax.lax.switch(y["case"], [lambda case=case: case for case in cases])


def test_every_status_is_the_cpus():
    case = np.array([0, 1, 2, 3, 4, 5, 6, 7, 5, 0])
    value = np.random.default_rng(0).normal(1.0, 1.0, (len(case), 51))
    value[1, 3], value[3, 2] = np.nan, 0.0
    weights = np.ones(value.shape)
    weights[8, 1:] = 0.0
    start = {"a": np.where(case == 7, 0.7, 0.0), "b": np.zeros(len(case))}
    start["a"][9] = np.nan
    data = {"value": value, "case": np.broadcast_to(case[:, None], value.shape)}
    options = {"start_axis": 0, "weights": weights, "retry": False}
    fits, _ = assert_like_the_cpus(by_case, start, data, max_steps=1000, **options)
    soon, _ = assert_like_the_cpus(by_case, start, data, max_steps=4, **options)
    met = {Status.CONVERGED, Status.BAD_START, Status.NOT_FINITE, Status.BOUNDARY, Status.SINGULAR_INFORMATION}
    met |= {Status.INDEFINITE, Status.STALLED, Status.TOO_FEW_OBSERVATIONS, Status.STEP_LIMIT}
    assert met <= {Status(code) for code in (*fits.status_code, *soon.status_code)}


def gev(params, y):
    inside = 1.0 + params["shape"] * (y - params["loc"]) / params["scale"]
    possible = inside > 0
    log_t = -jnp.log(jnp.where(possible, inside, 1.0)) / params["shape"]
    return jnp.where(possible, -jnp.log(params["scale"]) + (params["shape"] + 1.0) * log_t - jnp.exp(log_t), -jnp.inf)


def poisson_regression(beta, y, z):
    predictor = 0.5 + beta[0] * z["shared"] + beta[1] * z["own"]
    return y * predictor - jnp.exp(predictor)


def quantile_like(params, y):
    """With a maximum and a minimum in it, through which NaN must pass."""
    return norm.logpdf(jnp.minimum(y, 3.0), params, 1.0) - jnp.maximum(jnp.abs(y - params) - 4.0, 0.0)


def falling(slope, x):
    return {"rate": 1.0 + slope * x}


def shared_and_own_covariates():
    shared, own = RNG.normal(size=30), RNG.normal(size=(6, 30))
    y = RNG.poisson(np.exp(0.5 + 0.4 * shared - 0.6 * own)).astype(np.uint16)
    options = {"given": {"shared": shared, "own": own}, "given_axis": {"shared": None, "own": 0}}
    return (poisson_regression, np.zeros(2), y), options


def slopes_by_scoring():
    x = np.arange(9.0)
    waits = RNG.exponential(1 / falling(0.5, x)["rate"], (7, 9))
    model = fj.linked(fj.families.exponential, falling, constraints=fj.positive)
    return (model, 1.0, waits), {"given": x, "optimizer": fj.optimizers.fisher_scoring()}


def ragged_and_weighted():
    sizes = (5, 9, 14, 21)
    data = [RNG.normal(3.0, 0.5, size) for size in sizes]
    weights = [np.r_[1.0, 1.0, 1.0, RNG.integers(0, 3, size)[3:]] for size in sizes]  # three count at least
    return (fj.families.normal, {"loc": 2.0, "scale": 1.0}, data), {
        "weights": weights,
        "covariances": fj.fitting.covariance.KINDS,
    }


def one_fixed():
    data = RNG.gumbel(10.0, 2.0, (6, 25))
    start = {"loc": 10.0, "scale": 2.0, "shape": 0.1}
    return (fj.Model(gev, constraints={"scale": fj.positive, "shape": fj.fixed}), start, data), {}


def fixed_to_each_of_one_row():
    start = {"loc": np.zeros(5), "log_scale": np.log([1.0, 2.0, 3.0, 4.0, 5.0])}
    model = fj.Model(normal, constraints={"log_scale": fj.fixed})
    return (model, start, RNG.normal(2.0, 3.0, (5, 1))), {"start_axis": 0}


def a_matrix():
    data = RNG.multivariate_normal(np.zeros(2), [[2.0, 0.5], [0.5, 1.0]], (4, 20))

    def density(covariance, y):
        (a, b), (_, c) = covariance
        determinant = a * c - b**2
        return -0.5 * (c * y[0] ** 2 - 2 * b * y[0] * y[1] + a * y[1] ** 2) / determinant - 0.5 * jnp.log(determinant)

    return (fj.Model(density, constraints=fj.positive_definite), np.eye(2), data), {}


def truths_without_covariates():
    """Of which there are none; of two truths the larger is taken, and one row of weights says how often each counts."""
    data = {"y": RNG.normal(size=(4, 9)), "a": RNG.uniform(size=(4, 9)) < 0.5, "b": RNG.uniform(size=(4, 9)) < 0.5}

    def density(loc, y, z):
        by_truth = jnp.where(y["a"], 0.1 * loc, 0.0)
        return by_truth - 0.5 * (y["y"] - loc) ** 2 * (1.0 + jnp.maximum(y["a"], y["b"])) + jnp.sum(z)

    options = {"given": np.zeros((9, 0)), "weights": RNG.uniform(0.5, 2.0, 9), "weights_axis": None}
    return (density, 0.0, data), options


def not_a_number():
    data = RNG.normal(size=(4, 15))
    data[1, 2], data[2, 3] = np.nan, np.inf
    return (quantile_like, 0.0, data), {"retry": False}


CASES = [
    shared_and_own_covariates,
    slopes_by_scoring,
    ragged_and_weighted,
    fixed_to_each_of_one_row,
    truths_without_covariates,
    not_a_number,
    *(pytest.param(case, marks=pytest.mark.exhaustive) for case in (one_fixed, a_matrix)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_model_is_fitted_as_on_a_cpu(case):
    arguments, options = case()
    ours, cpus = assert_like_the_cpus(*arguments, **options)
    if "covariances" in options:
        for kind in options["covariances"]:
            np.testing.assert_allclose(ours.covariance(kind), cpus.covariance(kind), rtol=1e-8, atol=1e-12)


def test_float32_is_within_a_hundredth_of_a_standard_error():
    data = np.random.default_rng(8).gumbel(10.0, 2.0, (8, 30)).astype(np.float32)
    start = {"loc": np.float32(10.0), "scale": np.float32(2.0)}
    ours, _ = assert_like_the_cpus(fj.families.gumbel, start, data, within=0.01)
    assert ours.free.dtype == np.float32


# --- blocks, passes, chunks, devices --------------------------------------------------------------------------------


def assert_the_same(some, others):
    for name in ("free", "log_likelihood", "curvature", "decrement", "num_steps", "status_code"):
        np.testing.assert_array_equal(getattr(some, name), getattr(others, name))


def test_results_depend_neither_on_blocks_nor_on_passes(monkeypatch):
    data = RNG.exponential(2.0, (70, 13))
    as_tuned = fit_on_gpu(exponential, 3.0, data)
    assert np.ptp(as_tuned.num_steps) > 0
    for name, value in {"BLOCK": 64, "FIRST_STEPS": 1, "STEPS": 3}.items():
        monkeypatch.setattr(gpu, name, value)
    assert_the_same(fit_on_gpu(new_exponential(), 3.0, data), as_tuned)


def test_a_poisoned_data_set_changes_no_other_fit():
    data = RNG.exponential(2.0, (40, 13))
    clean = fit_on_gpu(exponential, 0.0, data, retry=False)
    data[7, 2] = np.nan
    poisoned = fit_on_gpu(exponential, 0.0, data, retry=False)
    others = np.arange(40) != 7
    assert poisoned.status[7] == Status.BAD_START
    assert_the_same(poisoned[others], clean[others])


def test_chunks_of_any_size_give_the_same_fits_and_few_fits_use_the_program_of_many(monkeypatch):
    monkeypatch.setitem(chunks.CAPACITIES, "gpu", (64, 128))
    data, model = RNG.exponential(2.0, (200, 13)), new_exponential()
    many = fit_on_gpu(model, 0.0, data)
    few = fit_on_gpu(model, 0.0, data[150:170])
    assert_the_same(few, many[150:170])
    assert len([key for key in programs_of(as_model(model)) if key[0] == "fit"]) == 1


def test_few_fits_are_not_filled_up_to_a_larger_program_where_there_is_a_smaller(monkeypatch):
    monkeypatch.setitem(chunks.CAPACITIES, "gpu", (64, 128))
    data, model, sizes, padded = RNG.exponential(2.0, (200, 13)), new_exponential(), [], engine.pad_chunk
    fit_on_gpu(model, 0.0, data[:20])
    fit_on_gpu(model, 0.0, data)
    monkeypatch.setattr(engine, "pad_chunk", lambda *arguments: sizes.append(arguments[2]) or padded(*arguments))
    fit_on_gpu(model, 0.0, data[:20])
    assert set(sizes) == {64}


def pieces_of(monkeypatch, count, leaf_shape, dtype, *, limit=None, devices=2):
    """The chunks of data sets of this shape on cards with so many bytes free, without an array of that size."""
    known = {"bytes_limit": limit, "bytes_in_use": limit // 2} if limit else None
    device = type("Device", (), {"memory_stats": lambda self: known})()
    leaf, model = np.broadcast_to(np.zeros((), dtype), (count, *leaf_shape)), as_model(new_exponential())
    layout, _ = flatten_parameters(model, 0.0)
    plan = Plan(model, layout, None, jax.tree.structure((0, None, None)), 0, (True,), leaf_shape[0])
    monkeypatch.setattr(workers, "platform", lambda: "gpu")
    pieces, capacity = chunks.pieces_of(plan, count, [leaf], (device,) * devices)
    assert pieces[0].start == 0
    assert pieces[-1].stop == count
    assert all(before.stop == after.start for before, after in itertools.pairwise(pieces))
    assert max(piece.stop - piece.start for piece in pieces) <= capacity
    return pieces, capacity


def test_chunks_are_no_larger_than_what_is_free(monkeypatch):
    _, capacity = pieces_of(monkeypatch, 10_000, (1000,), np.float32, limit=2**26)
    assert capacity < chunks.CAPACITIES["gpu"][0]
    assert capacity * 4000 * chunks.COPIES <= chunks.OF_FREE_MEMORY * 2**25 / 2


def test_few_data_sets_are_not_filled_up_to_what_costs_more_to_send(monkeypatch):
    assert pieces_of(monkeypatch, 4, (10**7,), np.float64)[1] == 64
    assert pieces_of(monkeypatch, 16_384, (500,), np.float64)[1] == 8192
    assert pieces_of(monkeypatch, 4, (10,), np.float64)[1] == 1024
    assert pieces_of(monkeypatch, 100_000, (10,), np.float64)[1] == 2**17


def test_a_chunk_has_no_more_entries_than_the_kernel_can_count(monkeypatch):
    _, capacity = pieces_of(monkeypatch, 70_000, (20_000,), np.uint8)
    assert capacity * 20_000 < 2**31


def test_rows_that_many_parameters_multiply_leave_lanes(monkeypatch):
    monkeypatch.setattr(workers, "platform", lambda: "gpu")
    assert chunks.lanes_of_arrays(2**30, 12) == 64
    assert chunks.lanes_of_arrays(10, 1) == chunks.MOST_LANES


def test_the_device_that_jax_was_told_is_taken():
    with jax.default_device("cpu"):
        assert workers.platform() == "cpu"
        assert workers.devices_of(None) == (None,) * workers.num_cores()
    with jax.default_device(jax.devices()[0]):
        assert workers.devices_of(3) == (None,) * 3


def test_several_devices_each_take_chunks(monkeypatch):
    devices, used, really_compiled = jax.devices()[:2], set(), engine._compiled

    def compiled(*arguments):
        programs, capacity = really_compiled(*arguments)

        def noted(program):
            def call(*arguments):
                result = program(*arguments)
                used.update(result.devices())
                return result

            return call

        return [(device, noted(program)) for device, program in programs], capacity

    monkeypatch.setitem(chunks.CAPACITIES, "gpu", (64,))
    data, model, options = RNG.exponential(2.0, (200, 5)), new_exponential(), {"covariances": ()}
    one = fit_on_gpu(model, 0.0, data, **options)
    monkeypatch.setattr(workers, "devices_of", lambda asked: tuple(devices))
    monkeypatch.setattr(engine, "_compiled", compiled)
    two = fit_on_gpu(model, 0.0, data, **options)
    assert (used, len(used)) == (set(devices), 2)
    assert_the_same(one, two)
    assert np.all(two.converged)
    monkeypatch.setattr(dataset, "on_device", lambda leaf: isinstance(leaf, jax.Array))
    assert_the_same(one, fit_on_gpu(model, 0.0, jax.device_put(data, devices[1]), **options))


# --- arrays where there is no kernel --------------------------------------------------------------------------------


def test_arrays_take_over_where_a_kernel_does_not_compile(monkeypatch):
    def fails(*arguments):
        raise NotImplementedError("no such operation\nand more")

    monkeypatch.setattr(gpu, "compiled", fails)
    data, model = RNG.exponential(2.0, (30, 13)), new_exponential()
    fits = fit_on_gpu(model, 0.0, data, covariances=("observed", "empirical"))
    assert fits.engine == "arrays"
    cpus = fj.fit_batch(model, 0.0, data, covariances=("observed", "empirical"))
    np.testing.assert_array_equal(fits.status, cpus.status)
    np.testing.assert_allclose(fits.free, cpus.free, rtol=1e-10)
    np.testing.assert_allclose(fits.outer_product, cpus.outer_product, rtol=1e-9)
    with pytest.raises(
        ValueError, match=r'engine="kernel": the kernel does not compile \(NotImplementedError: no such operation\)'
    ):
        fit_on_gpu(model, 0.0, data, engine="kernel")


def test_memory_that_is_short_now_is_an_error_and_no_reason_to_do_without_a_kernel(monkeypatch):
    def fails(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    data, model = RNG.exponential(2.0, (30, 13)), new_exponential()
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "compiled", fails)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
            fit_on_gpu(model, 0.0, data)
    assert fit_on_gpu(model, 0.0, data).engine == "kernel"


def test_a_compiler_that_fails_without_a_word_is_survived(monkeypatch):
    def fails(*arguments):
        raise AssertionError

    monkeypatch.setattr(gpu, "compiled", fails)
    assert fit_on_gpu(new_exponential(), 0.0, RNG.exponential(size=(5, 13))).engine == "arrays"


def test_arrays_of_many_parameters_are_refilled_all_at_once():
    z = np.column_stack([np.ones(120), RNG.normal(size=(120, 8))])
    y = RNG.uniform(size=(90, 120)) < 1 / (1 + np.exp(-0.5 * z[:, 1]))
    model = fj.Model(lambda beta, y, z: jnp.where(y, 1.0, 0.0) * (z @ beta) - jnp.logaddexp(0.0, z @ beta))
    fits = fit_on_gpu(model, np.zeros(9), y, given=z, num_lanes=64)
    assert fits.engine == "arrays"
    assert fits.converged.all()
    p = 1 / (1 + np.exp(-fits.free @ z.T))
    information = np.einsum("bn,ni,nj->bij", p * (1 - p), z, z)
    np.testing.assert_allclose(fits.curvature, information, rtol=1e-9, atol=1e-9)
    newton_step = np.linalg.solve(information, ((y - p) @ z)[..., None])[..., 0]
    assert np.max(np.abs(newton_step) / fits.standard_errors()) < 1.5e-8  # the tolerance of a fit


# --- lowering for CUDA ----------------------------------------------------------------------------------------------


class Lowered(BaseException):
    """What stops a fit once its program is lowered; not an exception that arrays take over for."""


@pytest.fixture
def lowered(monkeypatch):
    """A function that lowers the program of a batch for CUDA without a card and returns its text."""

    def lower(function, *arguments):
        card = contextlib.nullcontext()
        if hasattr(jax.sharding, "AbstractDevice"):
            device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
            card = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("d",), abstract_device=device))
        with card, gpu.without_deprecation():
            raise Lowered(jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text())

    def text_of(*arguments, **options):
        with pytest.raises(Lowered) as stopped:
            fit_on_gpu(*arguments, **options)
        return str(stopped.value)

    monkeypatch.setattr(gpu, "compiled", lower)
    monkeypatch.setattr(gpu, "_how", lambda: {"compiler_params": triton.CompilerParams(num_warps=1, num_stages=1)})
    return text_of


def typed(tree, dtype):
    return jax.tree.map(lambda x: np.asarray(x, dtype if np.asarray(x).dtype.kind == "f" else None), tree)


PRECISIONS = (np.float32, np.float64)
ON_CARDS = [name for name in FAMILIES if name != "von_mises"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    some_of(
        [(name, dtype) for name in ON_CARDS for dtype in PRECISIONS],
        *[(name, np.float64) for name in OF_DIFFERENT_PARTS if name in ON_CARDS],
        *[(name, np.float32) for name in ("normal", "negative_binomial")],
    ),
)
def test_a_family_lowers_for_cuda(lowered, name, dtype):
    family = FAMILIES[name]
    row = jax.eval_shape(family.model.sample, jax.random.key(1), family.points[0])
    data = jax.tree.map(lambda x: np.ones((2, 3, *x.shape), x.dtype), row)
    assert "triton" in lowered(family.model, typed(family.points[0], dtype), typed(data, dtype))


@pytest.mark.parametrize(
    ("name", "dtype"),  # that of the family "negative_binomial" is above
    some_of(
        list(itertools.product(["gev", "mixture", "negative_binomial", "ordered_probit", "spots"], PRECISIONS)),
        ("gev", np.float64),
        *[(name, np.float32) for name in ("gev", "mixture", "ordered_probit", "spots")],
    ),
)
def test_a_density_lowers_for_cuda_in_both_precisions(lowered, name, dtype):
    density = DENSITIES[name]
    params, *row = typed(density.draw(np.random.default_rng(3)), dtype)
    y, z = jax.tree.map(lambda x: np.broadcast_to(x, (2, 3, *np.shape(x))), row)
    assert "triton" in lowered(density.log_density, params, y, given=z, given_axis=0)


def test_a_trivariate_normal_by_its_cholesky_factor_lowers_for_cuda(lowered):
    def log_density(covariance, y):
        return DENSITIES["cholesky_normal"].log_density({"covariance": covariance}, y, 0.0)

    model = fj.Model(log_density, constraints=fj.positive_definite)
    assert "triton" in lowered(model, np.eye(3), RNG.normal(size=(2, 9, 3)))
