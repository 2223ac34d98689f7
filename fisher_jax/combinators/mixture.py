"""`mixture`: each observation comes from one of K components, and which one is not observed.

    log p(y) = log Σₖ wₖ pₖ(y),    Σₖ wₖ = 1

summed as m + log Σₖ exp(log wₖ pₖ(y) − m), m the largest term, so that no component underflows. The likelihood is the same when
components of one model exchange their places: an ordered parameter leaves one of the K! equal maxima. That of normal components
with scales of their own has no upper bound: it grows without end where one component shrinks to a point on an observation. A fit
that goes there is not certified; the maximum that is meant is a local one (Kiefer and Wolfowitz 1956).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from fisher_jax.combinators.censored import limits_of
from fisher_jax.combinators.parts import call_with_covariates, check_model, check_names
from fisher_jax.errors import check_count, check_function, entry_point, kind_of, shown
from fisher_jax.models.constraints import Bounds, Interval, Ordered, Unconstrained, simplex
from fisher_jax.models.fingerprint import content_of
from fisher_jax.models.model import Model, check_without_prior
from fisher_jax.models.parameters import names_by_path
from fisher_jax.models.programs import ById, UserFunction, owner_of
from fisher_jax.numerics.array_namespace import namespace, on_host
from fisher_jax.numerics.inversion import invert

WEIGHTS = "weights"
APART = 0.1  # of ordered starting values that would be equal, on their unconstrained scale


class MixtureModel(Model):
    """A model made by `mixture`."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The components."""
        components = self.components
        if not components.names:
            return "mixture", (components.models[0], components.number)
        return "mixture", (dict(zip(components.names, components.models, strict=True)),)

    @property
    def components(self) -> "Components":
        """What the mixture is made of."""
        return self.log_density.components

    def log_joint(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, " k"]:
        """log wₖ pₖ(y) of one observation, for each component."""
        return self.log_density.joint(params, y, *z)

    def check_parameters(self, params: PyTree) -> None:
        """Raise where a part of the parameters is missing, or has no entry for each component."""
        self.components.check(params)

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """What each component checks of observations."""
        for model in self.components.models:
            model.check_data(data, given)

    @property
    def numbers_in_row(self) -> int:
        """As many as an observation of the components."""
        return self.components.models[0].numbers_in_row

    @property
    def atoms(self) -> tuple[float, ...]:
        """Those that all components have."""
        return self.components.models[0].atoms

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """That of the components, which are censored alike."""
        c = self.components
        return c.models[0].known_interval(params[c.names[0]] if c.names else c.params_of(0, params), y, *z)

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """How many components there are, and how they are distinguished."""
        return [("Mixture", self.components.description)]


@dataclass(frozen=True)
class Components:
    """The components of a mixture: one model `number` times, with vectors for its parameters, or several models by name."""

    models: tuple[Model, ...]
    names: tuple[str, ...]
    number: int
    weights: UserFunction | None
    ordered: str | None
    shared: tuple[str, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What programs that are stored with the owner of the first density depend on."""
        owner, _ = owner_of(self.models[0].log_density)
        of_models = tuple((type(m), m.declarations, m.keys_beside(owner)) for m in self.models)
        weights = None if self.weights is None else content_of(self.weights)[0] or ById(self.weights)
        return of_models, self.names, self.number, weights, self.ordered, self.shared

    @property
    def description(self) -> str:
        """The components in words."""
        if self.names:
            return f"components {', '.join(self.names)}"
        order = "in no order, so that they may exchange their places" if self.ordered is None else f"by {self.ordered}"
        return f"{self.number} components, {order}"

    def check(self, params: PyTree) -> None:
        """Raise where a part of the parameters is missing, or has no entry for each component."""
        parts = ", ".join(map(repr, (WEIGHTS, *self.names))) if self.names else f"{WEIGHTS!r} and those of a component"
        if not isinstance(params, Mapping):
            raise TypeError(
                f"the parameters of a mixture (start) are a dictionary with {parts}, got {kind_of(params)}."
            )
        for name in (WEIGHTS, *self.names):
            if name not in params:
                raise ValueError(
                    f"the parameters of the mixture (start) lack {name!r}: they are a dictionary with {parts}."
                )
        if self.weights is None and np.shape(params[WEIGHTS]) != (self.number,):
            raise ValueError(
                f"{WEIGHTS} of the mixture have shape {np.shape(params[WEIGHTS])}, expected ({self.number},), one for each "
                "component."
            )
        if self.names:
            for name, model in zip(self.names, self.models, strict=True):
                model.check_parameters(params[name])
            return
        for name in self.shared:
            if name not in params:
                raise ValueError(f"shared={name!r} is none of the parameters, {', '.join(map(str, params))}.")
        for name, value in params.items():
            for leaf in jax.tree.leaves(value) if name not in (WEIGHTS, *self.shared) else ():
                if np.shape(leaf)[:1] != (self.number,):
                    raise ValueError(
                        f"parameter `{name}` of the mixture has shape {np.shape(leaf)}, expected a leading axis of "
                        f"{self.number}, one entry for each component. A parameter with one value for all is named in shared=."
                    )

    def log_weights(self, params: PyTree, *z: PyTree) -> Float[Array, " k"]:
        """log w, from a point of the simplex or from what the user's function makes of covariates."""
        if self.weights is None:
            return jnp.log(jnp.asarray(params[WEIGHTS]))
        logits = jnp.asarray(self.weights(params[WEIGHTS], *z))
        if logits.shape != (self.number,):
            raise ValueError(
                f"weights(params, z) must return {self.number} numbers, log-odds of the components, but returned shape "
                f"{logits.shape}."
            )
        return logits - log_sum_exp(logits)

    def of_each(
        self, name: str, params: PyTree, *z: PyTree, before: tuple[Any, ...] = (), after: tuple[Any, ...] = ()
    ) -> Any:
        """A function of each component, `name`(*before, params, *after, *z), stacked along a first axis (K, …)."""
        if self.names:
            each = [
                call_with_covariates(getattr(model, name), (*before, params[key], *after), z)
                for key, model in zip(self.names, self.models, strict=True)
            ]
            return jnp.stack(jnp.broadcast_arrays(*each))
        of_each, axes = self._params_of_each(params)
        function = getattr(self.models[0], name)
        return jax.vmap(lambda part: call_with_covariates(function, (*before, part, *after), z), in_axes=(axes,))(
            of_each
        )

    def draw(self, key: Array, label: Array, params: PyTree, *z: PyTree) -> PyTree:
        """A draw of the component with the number `label`."""
        if self.names:
            draws = [
                call_with_covariates(model.sample, (key, params[name]), z)
                for name, model in zip(self.names, self.models, strict=True)
            ]
            return jax.tree.map(lambda *leaves: jnp.stack(jnp.broadcast_arrays(*leaves))[label], *draws)
        return call_with_covariates(self.models[0].sample, (key, self.params_of(label, params)), z)

    def params_of(self, k: Any, params: PyTree) -> dict[str, Any]:
        """The parameters of one component of one model."""
        of_each, axes = self._params_of_each(params)
        return {
            name: value if axes[name] is None else jax.tree.map(lambda leaf: leaf[k], value)
            for name, value in of_each.items()
        }

    def _params_of_each(self, params: PyTree) -> tuple[dict[str, Any], dict[str, int | None]]:
        """The parameters of the components and, for each, whether it has an axis over them, as for `jax.vmap`."""
        of_each = {name: jax.tree.map(jnp.asarray, value) for name, value in params.items() if name != WEIGHTS}
        return of_each, {name: None if name in self.shared else 0 for name in of_each}


def log_sum_exp(terms: Float[Array, " k"]) -> Float[Array, ""]:
    """log Σ exp, −inf with a derivative of zero where all terms are −inf; `jax.nn.logsumexp` has NaN for it."""
    largest = jax.lax.stop_gradient(jnp.max(terms))
    none = largest == -jnp.inf
    safe = jnp.where(none, 0.0, largest)
    total = jnp.sum(jnp.exp(jnp.where(none, 0.0, terms) - safe))
    return jnp.where(none, -jnp.inf, safe + jnp.log(total))


@dataclass(frozen=True)
class _OfComponents:
    """One of the functions of a mixture. Equal where the components are."""

    components: Components

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.components.models[0].log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.components.key


class _LogDensity(_OfComponents):
    def joint(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, " k"]:
        c = self.components
        each = c.of_each("log_density", params, *z, after=(y,))
        if each.shape != (c.number,):
            raise ValueError(
                f"the log-density of a component of the mixture must be a number, but that of all {c.number} together has shape "
                f"{each.shape}. A parameter in shared= has no axis over the components, each other one has one."
            )
        return c.log_weights(params, *z) + each

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        return log_sum_exp(self.joint(params, y, *z))


class _LogCdf(_OfComponents):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        c = self.components
        return log_sum_exp(c.log_weights(params, *z) + c.of_each("log_cdf", params, *z, after=(y,)))


class _LogSurvival(_OfComponents):
    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        c = self.components
        return log_sum_exp(c.log_weights(params, *z) + c.of_each("log_survival", params, *z, after=(y,)))


class _Sample(_OfComponents):
    def __call__(self, key: Array, params: PyTree, *z: PyTree) -> PyTree:
        of_label, of_y = jax.random.split(key)
        label = jax.random.categorical(of_label, self.components.log_weights(params, *z))
        return self.components.draw(of_y, label, params, *z)


class _Mean(_OfComponents):
    def __call__(self, params: PyTree, *z: PyTree) -> Array:
        weights = jnp.exp(self.components.log_weights(params, *z))
        means = self.components.of_each("mean", params, *z)
        return jnp.tensordot(weights, means.astype(weights.dtype), 1)


class _Support(_OfComponents):
    def __call__(self, params: PyTree, *z: PyTree) -> tuple[Any, Any]:
        c = self.components
        if c.names:
            each = [
                call_with_covariates(m.support, (params[name],), z) if callable(m.support) else m.support
                for name, m in zip(c.names, c.models, strict=True)
            ]
            low, high = (jnp.stack([jnp.asarray(ends[k], float) for ends in each]) for k in (0, 1))  # type: ignore[index]
        else:
            low, high = c.of_each("support", params, *z)
        return jnp.min(low), jnp.max(high)


class _Quantile(_OfComponents):
    """Between the least and the greatest quantile of the components."""

    def __call__(self, uniform: ArrayLike, params: PyTree, *z: PyTree) -> Array:
        c = self.components
        each = jax.lax.stop_gradient(c.of_each("quantile", params, *z, before=(uniform,)))
        ends = {"low": jnp.min(each), "high": jnp.max(each)}
        return invert(_LogCdf(c), _LogSurvival(c), uniform, params, *z, **ends, discrete=c.models[0].discrete)


class _Initial(_OfComponents):
    """Components of one model start from consecutive parts of the sorted data, others from all of them; equal weights."""

    def __call__(self, data: PyTree, *given: PyTree) -> dict[str, Any]:
        c, data = self.components, on_host(data)
        if not c.names:
            groups = in_groups(data, given, c.number)
            each = [c.models[0].initial(*group) for group in groups]  # type: ignore[misc]
            start = jax.tree.map(lambda *leaves: namespace(leaves).stack(leaves), *each)
            for name in c.shared:
                start[name] = jax.tree.map(lambda leaf: leaf.mean(axis=0), start[name])
            if c.ordered is not None:
                start = _in_order(start, c.ordered, range_of(c.models[0], c.ordered), c.shared)
            return {WEIGHTS: equal_weights(c.number, start)} | start
        starts = {}
        for model in dict.fromkeys(c.models):
            places = [k for k, other in enumerate(c.models) if other == model]
            for k, group in zip(places, in_groups(data, given, len(places)), strict=True):
                starts[c.names[k]] = model.initial(*group)  # type: ignore[misc]
        return {WEIGHTS: equal_weights(c.number, starts)} | {name: starts[name] for name in c.names}


def equal_weights(number: int, start: PyTree) -> np.ndarray:
    """1/K each, in the precision of the other starting values."""
    return np.full(number, 1.0 / number, jnp.result_type(float, *jax.tree.leaves(start)))


def in_groups(data: PyTree, given: tuple[PyTree, ...], number: int) -> list[tuple[PyTree, ...]]:
    """The rows in groups of equal sizes of increasing y; of several numbers, along their first principal axis."""
    if number == 1:
        return [(data, *given)]
    leaves = jax.tree.leaves(data)
    if len(leaves) != 1:
        raise ValueError(
            "a mixture of one model has no starting values for observations that consist of several arrays. Give a start."
        )
    xp, y = namespace(leaves[0]), leaves[0]
    if y.ndim > 1:
        flat = y.reshape(y.shape[0], -1)
        centred = flat - flat.mean(axis=0)
        scale = xp.where(centred.std(axis=0) > 0, centred.std(axis=0), 1.0)
        y = (centred / scale) @ xp.linalg.svd(centred / scale, full_matrices=False)[2][0]
    order = xp.argsort(y)
    # At least two rows in each, as far as there are as many; the parts overlap where there are fewer rows than components.
    n = len(order)
    ends = [round(k * n / number) for k in range(number + 1)]
    parts = [order[min(a, max(b - 1, 0)) : max(b, a + 1)] for a, b in itertools.pairwise(ends)]
    return [jax.tree.map(lambda leaf, part=part: leaf[part], (data, *given)) for part in parts]


def _in_order(
    start: dict[str, Any], ordered: str, within: Interval | Unconstrained, shared: tuple[str, ...]
) -> dict[str, Any]:
    """The components sorted by the ordered parameter, whose values are put apart where they are equal."""
    xp, place = namespace(start[ordered]), within.inverse(start[ordered])
    order = xp.argsort(place)
    start = {
        name: value if name in shared else jax.tree.map(lambda leaf: leaf[order], value)
        for name, value in start.items()
    }
    values = list(place[order])
    for k in range(1, len(values)):
        step = APART if within.restricts else APART * xp.maximum(1.0, abs(values[k - 1]))
        values[k] = xp.where(values[k] > values[k - 1], values[k], values[k - 1] + step)
    return start | {ordered: within.forward(xp.stack(values).astype(place.dtype))}


def range_of(model: Model, name: str | None) -> Any:
    """The constraint that a model puts on one of its parameters."""
    constraint = dict(model.declarations.constraints).get((name,), Unconstrained())
    return constraint.constraint if isinstance(constraint, Bounds) else constraint


@entry_point
def mixture(
    components: Model | Sequence[Model] | Mapping[str, Model],
    number: int | None = None,
    *,
    ordered: str | None = None,
    shared: str | Sequence[str] = (),
    weights: UserFunction | None = None,
    constraints: PyTree = None,
    initial: UserFunction | None = None,
) -> Model:
    """A mixture: p(y) = Σₖ wₖ pₖ(y), with K components of one family, or of several.

    Parameters
    ----------
    components : Model, or dictionary of models
        One model, with `number` components. Its parameters then are those of a component with a leading axis of length K, and the
        weights beside them: ``{"weights": (K,), "loc": (K,), "scale": (K,)}``. Or models of the same y by name,
        ``{"signal": families.normal, "background": families.exponential}``, each with parameters of its own:
        ``{"weights": (K,), "signal": {"loc": …, "scale": …}, "background": {"rate": …}}``, the weights in the order of the names. A
        list of equal models is one model so many times.
    number : int, optional
        K, of one model; at least 2.
    ordered : str, optional
        A parameter of one model that increases from component to component, by the constraint `ordered`, inside the range that it
        has: it leaves one of the K! maxima that differ in the order of the components only.
    shared : str or sequence of str
        Parameters of one model that have one value for all components, without the leading axis: a common scale, a number of
        trials.
    weights : callable, optional
        ``weights(params, z)``: K log-odds, of which the softmax are the weights of an observation with covariates z; its own
        parameters are ``params["weights"]``, any pytree. One of the log-odds has to be a constant, as in
        ``lambda gamma, z: jnp.stack([0.0, z @ gamma])``. By default the weights are constant, a point of the simplex.
    constraints : pytree, optional
        Of the parameters of `weights`: ``constraints=…`` stands for ``{"weights": …}`` of the whole.
    initial : callable, optional
        In place of the starting values that the components have, as for `Model`.

    Returns
    -------
    Model
        With what all components have of sampler, distribution, survival and quantile functions, mean and support. A component whose
        functions take covariates z gets them. Without covariates in the weights, ``start=None`` splits the sorted data into as many
        groups as there are components of one model, and starts each from its group.

    Raises
    ------
    TypeError, ValueError
        If the components are no models, `number`, `ordered` or `shared` do not fit them, or counts are mixed with continuous
        observations (see `zero_inflated` and `hurdle` for a point mass).

    Notes
    -----
    The likelihood of a mixture has several maxima as a rule. ``fit(…, starts=64, key=key)`` fits from many starts at once and lists
    all that were certified as `optima`.

    Where a component can shrink to a point (a normal with a scale of its own), the likelihood has no upper bound. A fit that goes
    there ends with the status `boundary` or `step limit`, and is not counted as a maximum by `starts`. A common scale
    (``shared="scale"``) or a prior on it makes the likelihood bounded. A local maximum may be spurious all the same, a component
    on a few observations that happen to lie close to each other: its scale is then small and its weight a few divided by n.

    Where two components are equal, or a weight is zero, the model has fewer components and the information is singular there: the
    status shows it, and a likelihood-ratio test of the number of components has no chi-squared distribution; see `bootstrap`.
    `component_probabilities` gives the probabilities that each observation comes from each component.

    References
    ----------
    McLachlan, G. and Peel, D. (2000), Finite Mixture Models, chapters 2 and 3; Kiefer, J. and Wolfowitz, J. (1956), Ann. Math.
    Statist. 27, 887-906, for the unbounded likelihood.

    Examples
    --------
    >>> import fisher_jax as fj, jax, jax.numpy as jnp
    >>> model = fj.mixture(fj.families.normal, 2, ordered="loc")
    >>> truth = {"weights": jnp.array([0.3, 0.7]), "loc": jnp.array([0.0, 5.0]), "scale": jnp.array([1.0, 1.0])}
    >>> y = jax.vmap(lambda key: model.sample(key, truth))(jax.random.split(jax.random.key(1), 400))
    >>> fit = fj.fit(model, None, y)
    >>> print(fit.status, fit.params["weights"].round(1), fit.params["loc"].round(0))
    converged [0.3 0.7] [0. 5.]
    """
    models, names, number = _check_components(components, number)
    for model in models:
        check_without_prior(model, "mixture")
    if names and (ordered is not None or shared):
        raise ValueError(
            "ordered and shared name a parameter that the components of one model have in common, and the components are several "
            "models by name. Components of one model are mixture(model, number)."
        )
    if weights is not None:
        check_function(weights, WEIGHTS, "params (and z)")
    elif constraints is not None:
        raise ValueError("constraints are those of the parameters of weights=, and there is no such function.")
    if initial is not None:
        check_function(initial, "initial", "data")
    shared = check_names(shared, "shared")
    if len({model.discrete for model in models}) > 1:
        raise ValueError(
            "the components are of counts and of continuous observations, which have no common density. See zero_inflated and "
            "hurdle for a point mass."
        )
    if len({(model.atoms, limits_of(model)) for model in models}) > 1:
        raise ValueError(
            "the components are censored at different limits, or not all of them, or have a probability of zero that not all have. "
            "Combine the mixture: censored(mixture(…), …), hurdle(mixture(…))."
        )
    tree: dict[str, Any] = {WEIGHTS: simplex if weights is None else constraints}
    entry_names: dict[str, Any] = {}
    if names:
        tree |= {name: model.constraints for name, model in zip(names, models, strict=True)}
        entry_names = {
            name: model.names for name, model in zip(names, models, strict=True) if names_by_path(model.names)
        }
        if weights is None:
            entry_names[WEIGHTS] = tuple(f"{WEIGHTS}.{name}" for name in names)
    else:
        tree |= _check_one_model(models[0], ordered, shared)
    parts = Components(models, names, number, weights, ordered, shared)

    def if_all(name: str, function: type[_OfComponents], *others: str) -> Any:
        have = all(getattr(model, other) is not None for model in models for other in (name, *others))
        return function(parts) if have else None

    starts = initial if initial is not None else if_all("initial", _Initial) if weights is None else None
    return MixtureModel(
        _LogDensity(parts),
        sample=if_all("sample", _Sample),
        log_cdf=if_all("log_cdf", _LogCdf),
        log_survival=if_all("log_survival", _LogSurvival),
        quantile=if_all("quantile", _Quantile, "log_cdf", "log_survival"),
        mean=if_all("mean", _Mean),
        support=_support(parts),
        discrete=models[0].discrete,
        constraints=tree,
        initial=starts,
        names=entry_names or None,
    )


def _check_components(components: Any, number: Any) -> tuple[tuple[Model, ...], tuple[str, ...], int]:
    """The models, their names where there are several, and the number of components."""
    if isinstance(components, Mapping):
        names = tuple(components)
        if not all(isinstance(name, str) for name in names) or WEIGHTS in names:
            raise ValueError(f"components={shown(components)}: their names must be text, and none of them {WEIGHTS!r}.")
        if number is not None:
            raise ValueError(
                f"number={shown(number)} is of components of one model; a dictionary has as many as it names."
            )
        if len(names) < 2:
            raise ValueError(f"components={shown(components)} names {len(names)}; a mixture has two at least.")
        return tuple(check_model(m, "components") for m in components.values()), names, len(names)
    if isinstance(components, list | tuple):
        models = tuple(check_model(m, "components") for m in components)
        if number is not None or len(models) < 2:
            raise ValueError(
                f"components is a list of {len(models)} and number={shown(number)}. Give one model and a number, or two models at "
                "least."
            )
        if len(set(models)) == 1:
            return models[:1], (), len(models)
        raise ValueError(
            "components is a list of different models, whose parameters need a name for each. Give a dictionary, as in "
            "{'signal': model, 'background': model}."
        )
    if number is None:
        raise ValueError(
            "number is missing: how many components of this model? mixture(model, 3), or a dictionary of models."
        )
    return (check_model(components, "components"),), (), check_count(number, 2, "number", ", of components", entries=0)


def _check_one_model(model: Model, ordered: Any, shared: tuple[str, ...]) -> dict[str, Any]:
    """The constraints of the parameters of one model's components."""
    tree = {} if model.constraints is None else model.constraints
    if not isinstance(tree, Mapping) or WEIGHTS in tree:
        raise ValueError(
            f"the parameters of the model must be a dictionary without {WEIGHTS!r} in it, which is that of the mixture. Name the "
            "components, as in {'first': model, 'second': model}."
        )
    parameters: tuple[str, ...] = getattr(model, "parameters", ())
    for argument, name in [("ordered", ordered), *(("shared", name) for name in shared)]:
        if name is not None and (not isinstance(name, str) or (parameters and name not in parameters)):
            listed = f", {', '.join(parameters)}" if parameters else ""
            raise ValueError(f"{argument}={shown(name)} is none of the model's parameters{listed}.")
    if ordered is None:
        return dict(tree)
    if ordered in shared:
        raise ValueError(f"ordered={ordered!r} is shared by all components, so that there is nothing to order.")
    within = range_of(model, ordered)
    if not isinstance(within, Interval | Unconstrained):
        raise ValueError(
            f"ordered={ordered!r} is {within.description} in the model; what increases over the components is one number of each, "
            "without a constraint or in an interval."
        )
    return dict(tree) | {ordered: Ordered(within)}


def _support(parts: Components) -> Any:
    """The least interval that holds those of all components."""
    supports = [model.support for model in parts.models]
    if any(support is None for support in supports):
        return None
    if any(callable(support) for support in supports):
        return _Support(parts)
    return min(support[0] for support in supports), max(support[1] for support in supports)  # type: ignore[index]
