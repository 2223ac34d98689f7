"""Programs of single entries against plain JAX: value, gradient and Hessian, NaN and infinities included."""

import functools
import inspect

import densities
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from families_registry import FAMILIES, OF_DIFFERENT_PARTS
from helpers import some_of
from jax.scipy.special import gammaln

from fisher_jax.numerics import expansion
from fisher_jax.numerics.expansion import CannotExpand, expand, split
from fisher_jax.numerics.row_sums import split_off_constant, sum_over_rows

LANES = 16


def row_derivatives(log_density, like, reverse=False):
    """(theta, y, z) -> value, gradient, upper triangle of the information, theta a list of scalars."""
    leaves, treedef = jax.tree.flatten(like)
    shapes = [np.shape(leaf) for leaf in leaves]
    p = sum(int(np.prod(shape)) for shape in shapes)

    def term(theta, y, z):
        entries = iter(theta)
        parts = [[next(entries) for _ in range(int(np.prod(shape)))] for shape in shapes]
        arrays = [a[0] if not shape else jnp.stack(a).reshape(shape) for a, shape in zip(parts, shapes, strict=True)]
        return log_density(jax.tree.unflatten(treedef, arrays), y, z)

    def replaced(theta, i, value):
        return [*theta[:i], value, *theta[i + 1 :]]

    def forward(theta, y, z):
        gradient, information, unit = [], [], jnp.ones_like(theta[0])

        def slope_along(i, t):
            return jax.jvp(lambda a: term(replaced(t, i, a), y, z), (t[i],), (unit,))

        for i in range(p):
            for j in range(i, p):
                moved = lambda b, i, j: slope_along(i, replaced(theta, j, b))  # noqa: E731
                (value, slope), (_, bend) = jax.jvp(functools.partial(moved, i=i, j=j), (theta[j],), (unit,))
                information.append(-bend)
            gradient.append(slope)
        return value, gradient, information

    def forward_over_reverse(theta, y, z):
        information, unit = {}, jnp.ones_like(theta[0])

        def gradient_and_value(b, j):
            value, pull = jax.vjp(lambda t: term(t, y, z), replaced(theta, j, b))
            return pull(jnp.ones_like(value))[0], value

        for j in range(p):
            along_j = functools.partial(gradient_and_value, j=j)
            (gradient, value), (row, _) = jax.jvp(along_j, (theta[j],), (unit,))
            information |= {(i, j): -row[i] for i in range(j + 1)}
        return value, gradient, [information[i, j] for i in range(p) for j in range(i, p)]

    return (forward_over_reverse if reverse or p > 3 else forward), p


def stack(draws):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *draws)


def one_lane(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def entries(tree):
    return [jnp.asarray(c) for a in jax.tree.leaves(tree) for c in np.asarray(a).reshape(len(a), -1).T]


def poison(tree, values):
    """The first lanes of each floating leaf take the values, in its first entry."""

    def leaf(a):
        if a.dtype.kind != "f":
            return a
        a = a.copy()
        a.reshape(len(a), -1)[: len(values), 0] = values
        return a

    return jax.tree.map(leaf, tree)


def family_case(name):
    family, rng = FAMILIES[name], np.random.default_rng(0)
    draws = []

    def jitter(v):
        return np.asarray(v) * (1 + 0.03 * rng.uniform(-1, 1, np.shape(v)))

    for k in range(LANES):
        draw = {
            n: np.asarray(v, float) if n in ("trials", "limit") else jitter(v) for n, v in family.points[k % 2].items()
        }
        if "covariance" in draw:
            draw["covariance"] = 0.5 * (draw["covariance"] + draw["covariance"].T)
        draws.append(draw)
    params = stack(draws)
    y = jax.jit(jax.vmap(family.model.sample))(jax.random.split(jax.random.key(1), LANES), params)
    y = jax.tree.map(np.asarray, y)
    return (lambda p, y, z: family.model.log_density(p, y)), params, y, np.zeros(LANES), False


def density_case(name):
    density, rng = densities.DENSITIES[name], np.random.default_rng(0)
    params, y, z = stack([density.draw(rng) for _ in range(LANES)])
    return density.log_density, params, y, z, density.reverse


def as_sums(sums, theta, *data):
    """The outputs, of one row."""
    rows, coefficients = sums.rows(theta, *data), sums.coefficients(theta)
    return [sum(rows[i] * np.asarray(coefficients[j], rows[0].dtype) for i, j in pairs) for pairs in sums.pairs]


def traced_once(row, like):
    """The function in the operations that it consists of: those of second derivatives take long to find."""
    jaxpr, results = jax.make_jaxpr(row, return_shape=True)(*like)

    def operations(*arguments):
        outputs = jax.extend.core.jaxpr_as_fun(jaxpr)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(results), outputs)

    return operations


def compare(case, dtype, tolerance):
    log_density, params, y, z, reverse = case
    params, y, z = jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, (params, y, z))
    row, p = row_derivatives(log_density, one_lane(params), reverse)
    # lanes 0 … 2: an observation not finite; 3, 4: a parameter not finite
    y = poison(y, [np.nan, np.inf, -np.inf])
    fine = entries(params)
    theta = [jnp.concatenate([fine[0][:3], jnp.asarray([np.nan, np.inf], dtype), fine[0][5:]]), *fine[1:]]
    like = [jax.ShapeDtypeStruct((), dtype)] * p, one_lane(y), one_lane(z)
    row = traced_once(row, like)
    program = expand(row, *like)
    results = as_sums(sum_over_rows(program, 0, 1, 1 + p, dtype), theta, entries(y), entries(z))
    results = np.stack([np.broadcast_to(r, LANES) for r in results])
    expected = np.stack(jax.tree.leaves(jax.jit(jax.vmap(row))(theta, y, z)))
    np.testing.assert_array_equal(np.isnan(results[0]), np.isnan(expected[0]))
    np.testing.assert_array_equal(results[0][np.isinf(expected[0])], expected[0][np.isinf(expected[0])])
    finite = np.isfinite(expected)
    assert np.all(np.isfinite(results[finite]))
    error = np.abs(results[finite] - expected[finite]) / np.maximum(1, np.abs(expected[finite]))
    assert error.max() < tolerance
    # a NaN of a derivative may be folded away only where the value, or a parameter, tells of it
    hidden = np.isnan(expected) & ~np.isnan(results)
    assert not np.any(hidden & np.isfinite(expected[0]) & np.isfinite(np.asarray(theta[0])))
    return program


# Each compiles the derivatives of a density.
@pytest.mark.parametrize("name", some_of(FAMILIES, *OF_DIFFERENT_PARTS))
def test_families_expand_to_what_jax_computes(name):
    compare(family_case(name), np.float64, 1e-12)


@pytest.mark.parametrize("name", densities.DENSITIES)
def test_densities_expand_to_what_jax_computes(name):
    compare(density_case(name), np.float64, 1e-12)


@pytest.mark.parametrize("name", ["negative_binomial", "spots", "gev", "gammas", "errors"])
def test_single_precision_stays_single_and_close(name):
    with jax.enable_x64(False):
        program = compare(density_case(name), np.float32, 2e-3)
    assert {str(e.dtype) for e in program.equations} <= {"float32", "bool", "int32", "uint32"}


def scalar(dtype=np.float64):
    return jax.ShapeDtypeStruct((), dtype)


@pytest.mark.parametrize("name", ["negative_binomial", "gev", "mixture", "garch"])
def test_the_parts_of_a_split_compose_to_the_whole(name):
    log_density, params, y, z, _ = density_case(name)
    row, p = row_derivatives(log_density, one_lane(params))
    program = expand(row, [scalar()] * p, one_lane(y), one_lane(z))
    theta, data, given = entries(params), entries(y), entries(z)
    of_theta, rest = split(program, 0)
    of_data, rest = split(rest, 1)
    assert len(of_theta.inputs) == len(of_data.inputs) == 1
    assert of_theta.num_equations + of_data.num_equations + rest.num_equations <= 1.2 * program.num_equations
    results = rest(theta, data, given, of_theta(theta), of_data(data))
    for a, b in zip(program(theta, data, given), results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_depends_on_data_only_leaves_the_rows():
    """Here log Γ(y + 1), of a negative binomial count."""
    log_density, params, y, z, _ = density_case("negative_binomial")
    row, p = row_derivatives(log_density, one_lane(params))
    program = expand(row, [scalar()] * p, one_lane(y), one_lane(z))
    first, rest = split(program, 1)
    assert len(first.outputs) == 1
    np.testing.assert_allclose(first(entries(y))[0], jax.scipy.special.gammaln(y + 1), rtol=1e-14)
    assert rest.num_equations < program.num_equations - 100


# --- sums over rows -------------------------------------------------------------------------------------------------


def sums_of(function, p=2, whole=1):
    """As sums of rows that hold three numbers."""
    return sum_over_rows(expand(function, [scalar()] * p, [scalar()] * 3), 0, 1, whole, np.float64)


def names(program):
    return [equation.primitive.name for equation in program.equations]


def test_factors_of_the_parameters_leave_the_rows():
    sums = sums_of(lambda t, x: (x[0], ((x[0] * t[0]) * x[1]) * jnp.exp(t[1]) * 3.0))
    assert names(sums.rows) == ["mul"]
    assert names(sums.coefficients).count("exp") == 1
    theta, x = [jnp.float64(0.7), jnp.float64(0.2)], [jnp.float64(v) for v in (1.5, -2.0, 0.3)]
    np.testing.assert_allclose(as_sums(sums, theta, x)[1], 1.5 * 0.7 * -2.0 * np.exp(0.2) * 3.0, rtol=1e-14)


def test_an_output_of_few_terms_is_summed_term_by_term_where_that_is_allowed():
    def function(t, x):
        return x[0], t[0] * x[0] * x[1] - t[1] * x[1] * x[1], t[0] * x[0] * x[1] + t[1] * x[2]

    apart, together = sums_of(function), sums_of(function, whole=3)
    assert len(apart.rows.outputs) == 4  # the value, x0 x1, x1 x1 and x2
    assert names(apart.rows) == ["mul", "mul"]
    assert [len(pairs) for pairs in apart.pairs] == [1, 2, 2]
    assert [len(pairs) for pairs in together.pairs] == [1, 1, 1]
    theta, x = [jnp.float64(0.7), jnp.float64(0.2)], [jnp.float64(v) for v in (1.5, -2.0, 0.3)]
    np.testing.assert_allclose(as_sums(apart, theta, x), as_sums(together, theta, x), rtol=1e-14)


def test_a_difference_of_the_value_stays_one_number_and_the_value_is_as_written():
    """Squared first and subtracted then, (y - mu)² would lose its digits."""
    sums = sums_of(lambda t, x: ((x[0] - t[0]) * t[1], (x[0] - t[0]) * t[1] * x[1], (x[0] - t[0]) ** 2 * t[1] ** 2))
    theta = [jnp.float64(1e8), jnp.float64(1.0)]
    results = as_sums(sums, theta, [jnp.float64(v) for v in (1e8 + 1.0, 3.0, 0.0)])
    np.testing.assert_array_equal(results, [1.0, 3.0, 1.0])


def test_factors_do_not_pass_a_choice_between_cases():
    """Where the case is not taken they may be infinite."""
    sums = sums_of(lambda t, x: (x[0], jnp.where(t[0] > 0, x[0] / t[0], 0.0) * x[1]))
    results = as_sums(sums, [jnp.float64(0.0), jnp.float64(1.0)], [jnp.float64(2.0)] * 3)
    np.testing.assert_array_equal(results, [2.0, 0.0])


def test_a_constant_is_not_taken_for_the_value_with_its_number():
    sums = sums_of(lambda t, x: (x[1], x[0] * t[0], t[0] * t[0]), p=1)
    np.testing.assert_array_equal(as_sums(sums, [jnp.float64(3.0)], [jnp.float64(5.0)] * 3), [5.0, 15.0, 9.0])


def value_and_constant(function, theta, x):
    """Of the first output: what is left of it, the constant, and all of it."""
    program = expand(function, [scalar()] * 2, [scalar()] * 3)
    left, constant = split_off_constant(program)
    theta, x = ([jnp.float64(v) for v in values] for values in (theta, x))
    return float(left(theta, x)[0]), float(constant(x)[0]), float(program(theta, x)[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda t, x: (t[0] * x[0] - jnp.exp(t[0]) - gammaln(x[0] + 1.0),),
        lambda t, x: (jnp.where(x[2] == 0, 0.0, x[2] * (t[0] * x[0] - gammaln(x[0] + 1.0))),),  # with a weight
        lambda t, x: (-(jnp.log(x[1]) - t[1] * x[0]) * 2.0 + jnp.where(x[0] > 1, jnp.log(x[0]), t[0]),),
        lambda t, x: (t[0] * x[0] + jnp.where(x[0] < 0, -jnp.inf, jnp.log(x[1])),),
    ],
)
def test_what_the_parameters_do_not_enter_leaves_the_value(function):
    left, constant, whole = value_and_constant(function, [0.3, 0.7], [2.0, 5.0, 3.0])
    assert constant != 0
    np.testing.assert_allclose(left + constant, whole, rtol=1e-14)


def test_a_value_that_is_not_finite_stays_so_without_its_constant():
    def outside(t, x):
        return (t[0] * x[0] + jnp.where(x[0] < 0, -jnp.inf, jnp.log(x[1])),)

    left, constant, whole = value_and_constant(outside, [1.0, 0.0], [-2.0, 5.0, 3.0])
    assert left + constant == whole == -np.inf
    # Chosen by the parameters as well: the logarithm may be NaN where it is not taken.
    support = lambda t, x: (jnp.where((x[0] > 0) & (t[0] > 0), t[0] * x[0] - jnp.log(x[0]), -jnp.inf),)  # noqa: E731
    program = expand(support, [scalar()] * 2, [scalar()] * 3)
    assert split_off_constant(program) == (program, None)


def test_a_difference_from_a_parameter_loses_nothing_to_the_constant():
    program = expand(lambda t, x: (-(x[0] - t[0]) - gammaln(x[1]),), [scalar()] * 2, [scalar()] * 3)
    left, constant = split_off_constant(program)
    assert constant is not None
    one = jnp.float64(1e16)
    np.testing.assert_array_equal(left([one, one], [one] * 3)[0], 0.0)
    np.testing.assert_array_equal(left([one, one], [one + 2] * 3)[0], -2.0)


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e9, 1e12])
def test_in_float32_the_scale_of_the_data_changes_no_information(scale):
    """Powers of y - m and of 1 / sigma by themselves leave the range of float32 long before their product does."""

    def student(p, y, z):
        return -3.0 * jnp.log1p(((y - p["m"]) * jnp.exp(-p["s"])) ** 2 / 5.0) - p["s"]

    y, like = np.linspace(-2.0, 4.0, LANES), {"m": np.float32(0), "s": np.float32(0)}
    row, p = row_derivatives(student, like)
    program = expand(row, [scalar(np.float32)] * p, scalar(np.float32), scalar(np.float32))
    sums = sum_over_rows(program, 0, 1, 1 + p, np.float32)

    def information(scale):
        theta = [np.float32(0.3 * scale), np.float32(np.log(scale))]
        found = as_sums(sums, [jnp.asarray(t) for t in theta], [jnp.asarray(y * scale, np.float32)], [jnp.float32(0)])
        return np.array(
            [np.sum(np.broadcast_to(x, LANES)) * unit for x, unit in zip(found[3:], (scale**2, scale, 1), strict=True)]
        )

    np.testing.assert_allclose(information(scale), information(1.0), rtol=1e-4, atol=1e-4)


def test_a_constant_that_costs_nothing_stays_where_it_is():
    program = expand(lambda t, x: (t[0] * x[0] - x[1],), [scalar()], [scalar()] * 2)
    assert split_off_constant(program) == (program, None)


def test_the_hessian_of_a_row_of_a_spot_takes_few_operations():
    """In float32, where the logarithm is one."""
    log_density, params, y, z, _ = density_case("spots")
    row, p = row_derivatives(log_density, one_lane(params))
    data = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.float32), (one_lane(y), one_lane(z)))
    program = expand(row, [scalar(np.float32)] * p, *data)
    rows = split(sum_over_rows(program, 0, 1, 1 + p, np.float32).rows, 0, products=True)[1]
    assert program.num_equations > 100
    assert rows.num_equations < 60


def test_parameters_stay_scalars_until_they_meet_lanes():
    program = expand(lambda t, y: (t[0] * y, jnp.exp(t[0]) * 2, jnp.where(t[1] > 0, y, t[0])), [scalar()] * 2, scalar())
    of_lanes, alone, chosen = program([jnp.float64(1.5), jnp.float64(1.0)], [jnp.arange(4.0)])
    assert of_lanes.shape == chosen.shape == (4,)
    assert alone.shape == ()
    wide = program([jnp.ones(1), jnp.ones(1)], [jnp.arange(4.0)])
    assert [a.shape for a in wide] == [(4,), (1,), (4,)]


def test_zero_times_nan_is_kept_in_the_value_and_folded_in_derivatives():
    matrix = np.eye(2)

    def function(z):
        return (z @ matrix)[1], (z @ matrix)[1] * 3

    z = [jnp.array([np.nan, 1.0]), jnp.array([2.0, 2.0])]
    shape = jax.ShapeDtypeStruct((2,), np.float64)
    np.testing.assert_array_equal(expand(function, shape)(z)[0], [np.nan, 2])
    folded = expand(lambda z: (0.0, (z @ matrix)[1] * 3), shape)
    assert folded.num_equations == 1
    np.testing.assert_array_equal(folded(z)[1], [6, 6])
    np.testing.assert_array_equal(expand(function, shape, exact=None)(z)[1], [np.nan, 6])


def test_outputs_without_entries_are_numbers():
    program = expand(lambda x: (x, jnp.log(2.0), jnp.arange(2)), scalar())
    assert program.outputs[1] == np.log(2.0)
    assert program.num_equations == 0


@pytest.mark.parametrize("log_density", densities.REFUSED, ids=lambda f: f.__name__)
def test_what_has_no_form_is_named_with_its_line(log_density):
    with pytest.raises(CannotExpand, match=densities.REFUSED[log_density]) as error:
        expand(log_density, {"a": jax.ShapeDtypeStruct((4,), np.float64)}, scalar(), scalar())
    lines, first = inspect.getsourcelines(log_density)
    name, _, line = error.value.place.rpartition(":")
    assert name == densities.__file__
    assert first <= int(line) < first + len(lines)


def test_too_many_equations_are_refused(monkeypatch):
    monkeypatch.setattr(expansion, "MAX_EQUATIONS", 300)
    with pytest.raises(CannotExpand, match="too many equations"):
        expand(lambda x: sum(jax.scipy.special.gammaln(x + k) for k in range(4)), scalar())


def test_a_large_table_is_refused_before_its_entries_are_looked_at():
    table = jnp.zeros(10_000_000)
    with pytest.raises(CannotExpand, match="a constant array of more than 65536 entries") as error:
        expand(lambda x: x * table[3], scalar())
    assert error.value.place.startswith(__file__)


def test_equal_work_of_the_passes_is_done_once():
    log_density, params, *_ = density_case("spots")
    row, p = row_derivatives(log_density, one_lane(params))
    program = expand(row, [scalar(np.float32)] * p, scalar(np.float32), jax.ShapeDtypeStruct((2,), np.float32))
    names = [e.primitive.name for e in program.equations]
    assert names.count("exp") == 3
    assert names.count("log") == 1
    assert len(names) < 130


@pytest.mark.parametrize("name", ["negative_binomial", "errors"])
def test_programs_lower_for_cuda(name):
    log_density, params, y, z, _ = density_case(name)
    row, p = row_derivatives(log_density, one_lane(params))
    program = expand(row, [scalar()] * p, one_lane(y), one_lane(z))
    lanes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (entries(params), entries(y), entries(z)))
    assert jax.export.export(jax.jit(program.__call__), platforms=["cuda"])(*lanes).mlir_module()


def test_every_primitive_that_stays_is_elementwise():
    assert not expansion._UNCHANGED & set(expansion._ARRAYS)
