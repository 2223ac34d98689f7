"""`joint` and `joint_fit`: several data sets, each with a model and a number of rows of its own, that share parameters.

    ℓ(θ) = Σ_a ℓ_a(θ_shared, θ_a),    ℓ_a = Σᵢ w_ai log p_a(y_ai; θ_shared, θ_a)

The log-density of a joint model is a function of all data at once, like that of `dependent`, and returns the terms of one data set
after the other. So each density is evaluated at its own rows only, whatever their numbers, and all that is a sum over terms
(scores, sandwich, influence, weights) takes them as they are; unlike those of a series, terms are independent, and resampled within
their part.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fisher_jax.combinators.parts import call_with_covariates, check_model, check_names
from fisher_jax.errors import entry_point, kind_of, names_in, shown
from fisher_jax.models.constraints import Bounds
from fisher_jax.models.dataset import is_count
from fisher_jax.models.likelihood import term_of
from fisher_jax.models.model import DependentModel, Model, check_without_prior
from fisher_jax.models.parameters import names_by_path
from fisher_jax.models.programs import owner_of

# Of the functions of a model of one row, the place of the parameters and the number of arguments before covariates.
_FUNCTIONS = {"sample": (1, 2), "quantile": (1, 2), "log_cdf": (0, 2), "log_survival": (0, 2), "mean": (0, 1)}


class PartModel(Model):
    """The model of one row of a data set, as a function of all parameters."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The name of the part, and its model."""
        return "part", (self.log_density.name, self.log_density.model)

    def check_parameters(self, params: PyTree) -> None:
        """Raise: the rows of a part do not determine the parameters of the others."""
        raise ValueError(
            f"a part of a joint fit, {self.log_density.name!r}, is predicted and compared with its data, and not fitted again. "
            "Give the joint fit."
        )

    def model_and_params(self, params: PyTree) -> tuple[Model, PyTree]:
        """The model as it was given, and its parameters among all."""
        of_row = self.log_density
        return of_row.model, of_row.parts.params_of(of_row.name, params)

    def log_probability(self, params: PyTree, low: Any, high: Any, *z: PyTree) -> Array:
        """log P(low < Y ≤ high)."""
        model, params = self.model_and_params(params)
        return model.log_probability(params, low, high, *z)

    @property
    def atoms(self) -> tuple[float, ...]:
        """Those of the model of the part."""
        return self.log_density.model.atoms

    def known_interval(self, params: PyTree, y: PyTree, *z: PyTree) -> tuple[Any, Any] | None:
        """That of the model of the part."""
        model, params = self.model_and_params(params)
        return model.known_interval(params, y, *z)

    def explain(self, params: PyTree, y: PyTree, *z: PyTree) -> str:
        """What the model of the part knows of the observation."""
        model, params = self.model_and_params(params)
        return model.explain(params, y, *z)


class JointModel(DependentModel):
    """A model made by `joint`."""

    def made_from(self) -> tuple[str, tuple[Any, ...]]:
        """The models of the parts."""
        return "joint", (dict(zip(self.log_density.parts.names, self.log_density.parts.models, strict=True)),)

    @functools.cached_property
    def parts(self) -> dict[str, Model]:
        """The model of one row of each data set, as a function of all parameters."""
        parts = self.log_density.parts
        return {name: _part_model(parts, name) for name in parts.names}

    @property
    def numbers_in_row(self) -> int:
        """As many as an observation has in the part where it has most."""
        return max(model.numbers_in_row for model in self.log_density.parts.models)

    def check_data(self, data: PyTree, given: PyTree) -> None:
        """What the model of each part checks of its observations."""
        parts = self.log_density.parts
        for name, model in zip(parts.names, parts.models, strict=True):
            model.check_data(data[name], None if given is None or is_count(given[name]) else given[name])

    def check_parameters(self, params: PyTree) -> None:
        """Raise where a part of the parameters is missing."""
        self.log_density.parts.check(params)

    def facts(self, params: PyTree) -> list[tuple[str, str]]:
        """Which parameters are shared, and by which parts."""
        parts = self.log_density.parts
        shared = [f"{name} by {', '.join(takers)}" for name, takers in parts.shared]
        return [("Shared", "; ".join(shared) if shared else "no parameter")]


@dataclass(frozen=True)
class Parts:
    """The models of the data sets by name, and the names of shared parameters, each with those of the parts that take it."""

    names: tuple[str, ...]
    models: tuple[Model, ...]
    shared: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What programs that are stored with the owner of the first density depend on."""
        owner, _ = owner_of(self.models[0].log_density)
        of_models = tuple((type(m), m.declarations, m.keys_beside(owner)) for m in self.models)
        return self.names, of_models, self.shared

    def check(self, params: PyTree) -> None:
        """Raise where params are no dictionary with the shared parameters and the parts' own."""
        if not isinstance(params, Mapping):
            raise TypeError(
                f"the parameters of a joint model (start) are a dictionary by the names of parts, got {kind_of(params)}."
            )
        for name, _ in self.shared:
            if name not in params:
                raise ValueError(
                    f"the parameters (start) lack the shared parameter {name!r}; they have {', '.join(map(repr, params))}."
                )
        names = {*self.names, *(name for name, _ in self.shared)}
        for name in params:
            if name not in names:
                raise ValueError(
                    f"start has {name!r}, which is neither a part ({', '.join(self.names)}) nor shared. A parameter of one part "
                    f"stands under its name, {{{self.names[0]!r}: {{{name!r}: …}}}}; one of several is named in shared=."
                )
        for name, model in zip(self.names, self.models, strict=True):
            model.check_parameters(self.params_of(name, params))

    def params_of(self, part: str, params: PyTree) -> PyTree:
        """The parameters of one part: those that it shares beside its own."""
        shared = {name: params[name] for name, takers in self.shared if part in takers}
        of_part = params.get(part, {})
        if not shared:
            return of_part
        if not isinstance(of_part, Mapping):
            raise TypeError(
                f"the parameters of part {part!r} must be a dictionary, since it shares some; got {kind_of(of_part)}."
            )
        return {**shared, **of_part}


@dataclass(frozen=True)
class _OfParts:
    """One of the functions of a joint model. Equal where the parts are."""

    parts: Parts

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.parts.models[0].log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.parts.key


@dataclass(frozen=True)
class _OfRow:
    """The log-density of one row of a part, as a function of all parameters."""

    parts: Parts
    name: str

    @property
    def user_function(self) -> Any:
        """Where its programs are stored; see `models.programs.owner_of`."""
        return self.parts.models[0].log_density

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return self.parts.key, self.name

    @property
    def model(self) -> Model:
        """That of the part."""
        return self.parts.models[self.parts.names.index(self.name)]

    def __call__(self, params: PyTree, y: PyTree, *z: PyTree) -> Float[Array, ""]:
        return term_of(self.model, self.parts.params_of(self.name, params), y, z)


@dataclass(frozen=True)
class _OfPart(_OfRow):
    """Another function of one row of a part: `place` is that of the parameters among its `count` arguments before covariates."""

    function: str
    place: int
    count: int

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What else it is made of."""
        return *super().made_with, self.function

    def __call__(self, *arguments: Any) -> Any:
        before, z = list(arguments[: self.count]), arguments[self.count :]
        before[self.place] = self.parts.params_of(self.name, before[self.place])
        return call_with_covariates(getattr(self.model, self.function), tuple(before), z)


def _part_model(parts: Parts, name: str) -> PartModel:
    """The model of one row of a part, with the functions that the model as given has."""
    of_row = _OfRow(parts, name)
    functions: dict[str, Any] = {
        function: _OfPart(parts, name, function, *where)
        for function, where in _FUNCTIONS.items()
        if getattr(of_row.model, function) is not None
    }
    support = of_row.model.support
    functions["support"] = _OfPart(parts, name, "support", 0, 1) if callable(support) else support
    return PartModel(of_row, discrete=of_row.model.discrete, **functions)


def covariates_of(given: PyTree) -> tuple[PyTree, ...]:
    """The covariates of a part as further arguments."""
    return () if is_count(given) else (given,)


class _Terms(_OfParts):
    def __call__(self, params: PyTree, data: PyTree, given: PyTree = None) -> Float[Array, " n"]:
        terms = []
        for name in self.parts.names:
            of_row, z = _OfRow(self.parts, name), covariates_of(None if given is None else given[name])
            terms.append(jax.vmap(lambda y, *z, of_row=of_row: of_row(params, y, *z))(data[name], *z))
        return jnp.concatenate(terms)


class _Sample(_OfParts):
    def __call__(self, key: Array, params: PyTree, given: PyTree = None) -> dict[str, PyTree]:
        if given is None:
            raise ValueError(
                "draws of a joint model need given= with an entry for each part, of which the rows are counted."
            )
        drawn = {}
        for k, (name, model) in enumerate(zip(self.parts.names, self.parts.models, strict=True)):
            of_part, z = self.parts.params_of(name, params), covariates_of(given[name])
            rows = jax.tree.leaves(given[name])[0].shape[0]
            keys = jax.random.split(jax.random.fold_in(key, k), rows)
            drawn[name] = jax.vmap(lambda key, *z, model=model, part=of_part: model.sample(key, part, *z))(keys, *z)
        return drawn


class _Initial(_OfParts):
    """Each part's own start; a shared parameter starts at the mean of its starts, by the numbers of rows."""

    def __call__(self, data: PyTree, given: PyTree = None) -> dict[str, Any]:
        starts, rows = {}, {}
        for name, model in zip(self.parts.names, self.parts.models, strict=True):
            z = covariates_of(None if given is None else given[name])
            starts[name] = dict(model.initial(data[name], *z))  # type: ignore[misc]
            rows[name] = np.shape(jax.tree.leaves(data[name])[0])[0]
        params: dict[str, Any] = {}
        for shared, takers in self.parts.shared:
            values = [starts[name].pop(shared) for name in takers]
            weights = [rows[name] / sum(rows[name] for name in takers) for name in takers]
            params[shared] = jax.tree.map(
                lambda *leaves, weights=weights: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *values
            )
        return params | {name: start for name, start in starts.items() if start}


@entry_point
def joint(models: Mapping[str, Model], shared: str | Sequence[str] | Mapping[str, Sequence[str]] = ()) -> Model:
    """A model of several data sets that share parameters by name.

    Parameters
    ----------
    models : dictionary of models
        The model of each data set: ``{"spectrum": model, "counts": model}``. Each is of one observation of its own data.
    shared : str, sequence of str, or dictionary
        The names of the parameters that all parts have in common; or each with the parts that take it, ``{"mu": ("a", "b")}``.

    Returns
    -------
    Model
        Of params ``{"mu": …, "a": {…}, "b": {…}}``: the shared parameters, and under the name of each part its own (left out where
        it has none). Data, covariates and weights are dictionaries by the names of the parts, ``{"a": (n_a, …), "b": (n_b, …)}``; a
        part without covariates, or with weights of one, is left out of them.

    Raises
    ------
    TypeError, ValueError
        If a model is `dependent`, has latent effects or an auxiliary measurement; if a name is both a part and shared; or if the
        parts put different constraints on a shared parameter.

    Notes
    -----
    n is the number of all rows, and the report has that of each part. The observed information and the outer product of scores are
    sums over the parts, so that covariances, the sandwich, profiles and tests are as for one model. The bootstrap resamples within
    each part, or draws each part from its model; clusters are labels of all rows, one part after the other, and are drawn from all.
    In `fit_batch` each part has an axis over the data sets, and the fits run in arrays; lists of data sets and ``by=`` are not for
    joint models. There is no Fisher information per observation, since rows of different parts inform about different parameters.

    Predictions, residuals and scores are those of a part: ``predict(fit.part("a"))``, with the covariance of the joint fit.

    Examples
    --------
    Two instruments with one mean, and an error each:

    >>> import fisher_jax as fj
    >>> model = fj.joint({"old": fj.families.normal, "new": fj.families.normal}, shared="loc")
    >>> fit = fj.fit(model, None, {"old": [4.0, 7.0, 5.5, 6.5], "new": [5.1, 5.3, 5.2]})
    >>> print(f"{fit.params['loc']:.2f} ± {fit.standard_errors()['loc']:.2f}")
    5.20 ± 0.05
    """
    if not isinstance(models, Mapping) or not models or not all(isinstance(name, str) for name in models):
        raise TypeError(f"models={shown(models)} must be a dictionary of models by the names of their data sets.")
    names, of_names = tuple(models), tuple(check_model(model, "models") for model in models.values())
    for name, model in zip(names, of_names, strict=True):
        if model.is_dependent or model.with_modes is not None or model.auxiliary is not None:
            raise ValueError(
                f"the model of {name!r} is dependent, has latent effects or an auxiliary measurement; a part of a joint model has "
                "independent rows."
            )
        check_without_prior(model, "joint")
    by_name = shared if isinstance(shared, Mapping) else dict.fromkeys(check_names(shared, "shared"), names)
    takers = tuple((name, tuple(names_in(parts))) for name, parts in by_name.items())
    for name, of_parts in takers:
        if name in names or not of_parts or any(part not in names for part in of_parts):
            raise ValueError(
                f"shared: {name!r} is taken by {', '.join(map(repr, of_parts)) or 'no part'}; a shared parameter has another name "
                f"than the parts, and parts that are among {', '.join(map(repr, names))}."
            )
    parts = Parts(names, of_names, takers)

    def if_all(name: str, function: type[_OfParts]) -> Any:
        return function(parts) if all(getattr(model, name) is not None for model in of_names) else None

    return JointModel(
        _Terms(parts),
        sample=if_all("sample", _Sample),
        initial=if_all("initial", _Initial),
        constraints=_constraints(parts),
        names=_names(parts),
    )


def _constraints(parts: Parts) -> dict[str, Any]:
    """The constraints of shared parameters, on which the parts agree, and of each part's own."""
    tree: dict[str, Any] = {}
    for name, model in zip(parts.names, parts.models, strict=True):
        constraints = {} if model.constraints is None else model.constraints
        its_shared = {shared for shared, takers in parts.shared if name in takers}
        if its_shared and not isinstance(constraints, Mapping):
            raise ValueError(
                f"the constraints of the model of {name!r} must be a dictionary, since it shares parameters."
            )
        tree[name] = {k: v for k, v in constraints.items() if k not in its_shared} if its_shared else constraints
    for shared, takers in parts.shared:
        declared: dict[Any, tuple[str, Any]] = {}
        for name in takers:
            model = parts.models[parts.names.index(name)]
            of_shared = {path: c for path, c in model.declarations.constraints if path[:1] == (shared,)}
            key = tuple(
                (path, c.constraint if isinstance(c, Bounds) else c) for path, c in of_shared.items() if c.restricts
            )
            if key:
                declared.setdefault(key, (name, model.constraints[shared]))
        if len(declared) > 1:
            listed = ", ".join(f"{constraint!r} in {name!r}" for name, constraint in declared.values())
            raise ValueError(
                f"the shared parameter {shared!r} has different constraints: {listed}. Give the models the same one."
            )
        for _, constraint in declared.values():
            tree[shared] = constraint
    return tree


def _names(parts: Parts) -> dict[str, Any] | None:
    """The names of entries of vectors that the models have."""
    tree: dict[str, Any] = {}
    for name, model in zip(parts.names, parts.models, strict=True):
        if not names_by_path(model.names):
            continue
        its_shared = {shared for shared, takers in parts.shared if name in takers}
        if not isinstance(model.names, Mapping):
            tree[name] = model.names
            continue
        tree |= {key: entries for key, entries in model.names.items() if key in its_shared}
        tree[name] = {key: entries for key, entries in model.names.items() if key not in its_shared}
    return tree or None
