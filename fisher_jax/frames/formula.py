"""`formula`: the model, the start, the data and the covariates that a formula and a table stand for."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.combinators.censored import censored, middles
from fisher_jax.combinators.zeros import INFLATION, ZERO
from fisher_jax.errors import check_choice, check_flag, entry_point, is_number, kind_of, names_in, shown, warn
from fisher_jax.families.common import Family
from fisher_jax.fitting.fit import fit, fit_batch
from fisher_jax.fitting.groups import Groups, groups_of
from fisher_jax.fitting.result import Fit, Origin
from fisher_jax.frames.effect_terms import EffectTerm, split_effects
from fisher_jax.frames.links import default_link, links_of
from fisher_jax.frames.predictor import (
    Constant,
    Design,
    EffectDesign,
    LinearPredictors,
    Predictor,
    constant_covariates,
    effect_covariates,
    frame_for,
    groups_of_rows,
    parse,
    variables_of,
)
from fisher_jax.input_arrays import Labels, as_labels, as_weights, check_same_labels, labels_of
from fisher_jax.latent.crossed import CrossedModel
from fisher_jax.latent.grouped import Grouped
from fisher_jax.latent.mixed import COVARIANCE, SD, MixedModel, mixed
from fisher_jax.models.constraints import Bounds, Constraint, Fixed, fixed
from fisher_jax.models.linked import linked
from fisher_jax.models.model import Model
from fisher_jax.models.parameters import in_key_order, key_order
from fisher_jax.models.prior import with_prior
from fisher_jax.models.programs import UserFunction
from fisher_jax.reporting import Report, Reported, ReportTable, listed
from fisher_jax.tables import MISSING, Table, TableOfGroups, describe_missing, frame_of, suggestion


@dataclass(frozen=True, eq=False, repr=False)
class Formula(Reported):
    """What a formula, a family and a table stand for: the arguments of `fit`, and the table they come from. Made by `formula`.

    Attributes
    ----------
    text : str
        The formula.
    model : Model
        A `linked` model of the family, or a `mixed` one where the formula has effects; its predictor turns other tables into
        covariates.
    start : dict
        Starting values: those of the family for a sample without covariates, zero slopes, and effects of moderate size.
    data : array (n,), or dictionary of them
        The response; with `event` {"time": …, "event": …}, with `upper` {"low": …, "high": …}. With effects (G, m), of G groups of
        up to m rows; of several factors (1, n).
    given : dict of arrays, or Grouped
        A design matrix (n, p) for each parameter with a formula, and what enters beside it. With effects they are grouped, and
        hold the weights, which are those of rows, too.
    weights : array (n,) or None
    table : Table
        The rows of the table that are used.
    num_dropped : int
        How many rows were left out because a value is missing.
    groups : Groups or None
        With effects, the labels of the groups and the rows of each, among those that are used; one group of all rows where there
        are several factors.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> cars = {"stopping": [2.0, 10.0, 4.0, 22.0, 16.0, 26.0], "speed": [4, 4, 7, 7, 8, 11]}
    >>> model, start, data = (getattr(fj.formula("stopping ~ speed", fj.families.normal, cars), part)
    ...                       for part in ("model", "start", "data"))
    >>> print(start["loc"].round(2), data)
    [13.33  0.  ] [ 2. 10.  4. 22. 16. 26.]
    """

    text: str
    model: Model
    start: dict[str, Any]
    data: PyTree
    given: dict[str, np.ndarray] | Grouped
    weights: Float[np.ndarray, " n"] | None
    table: Table
    num_dropped: int
    groups: Groups | None = None

    @property
    def predictor(self) -> Predictor:
        """From a table to covariates, and from these to the parameters of the family."""
        model = self.model
        density: Any = model.joint if isinstance(model, MixedModel | CrossedModel) else model.log_density
        predictor: Predictor = density.predictor
        return predictor

    @entry_point
    def fit(self, start: PyTree = None, **options: Any) -> Fit:
        """Fit the model: `fisher_jax.fit`, whose options these are.

        The result keeps the table, so that ``robust(fit, clusters="firm")`` finds its columns, and reports how many rows were left
        out.
        """
        model, start = self.model, self._start(start)
        result = fit(model, start, self.data, given=self.given, weights=self.weights, **options)
        return self._with_table(result, self._table_of_fit, self.num_dropped)

    @functools.cached_property
    def _table_of_fit(self) -> Table:
        """The rows of the fit's table; where they are grouped, those of each group."""
        if self.groups is None:
            return self.table
        return TableOfGroups(self.table.native, self.table.name, np.asarray(self.table.rows)[self.groups.padded()])

    @entry_point
    def fit_batch(self, by: Any, start: PyTree = None, **options: Any) -> Fit:
        """Fit the model to each group of rows: `fisher_jax.fit_batch`, whose options these are.

        Where the formula has effects, each of these groups is a data set with groups that have effects, as the cells of a subject
        for each gene.

        `by` is the name of a column, several names, or an array of labels. The design is made once, over the whole table, so that
        levels are the same in each group; where one does not occur its coefficient is not identified, which the status shows.
        An array has a label for each row of the table, also for those that were left out.
        """
        if isinstance(self.model, CrossedModel):
            raise ValueError(
                f"all rows of a formula with effects of several factors or with reml=True (here of "
                f"{listed([each.name for each in self.predictor.effects])}) are one observation: such data sets are fitted one by "
                "one, each by formula(…).fit()."
            )
        names = [] if isinstance(by, np.ndarray) else names_in(by)
        whole, used = Table(self.table.native, self.table.name), np.asarray(self.table.rows)
        has_label = np.ones(len(whole), bool)
        if names and all(name in whole.names for name in names):
            places = self.table.missing(names)
            if places:
                raise ValueError(describe_missing(places, self.table.name, len(self.table)))
            keys = [whole.column(name) for name in names]
            for without_label in whole.missing(names).values():
                has_label &= ~without_label
        elif isinstance(by, str):
            whole.series(by, ", by which the groups are made")
        else:
            check_same_labels(_labels({"the table": whole.native, "by": by}))
            keys = [as_labels(by, "by")]
            if keys[0].shape != (len(whole),):
                raise ValueError(
                    f"by has shape {keys[0].shape}, but the table has {len(whole)} rows; expected one label each."
                )
        rows = np.flatnonzero(has_label)
        every = groups_of([key[rows] for key in keys])
        labels = np.empty(len(whole), dtype=every.labels.dtype)
        for label, members in zip(every.labels, every.rows, strict=True):
            labels[rows[members]] = label
        groups = groups_of([labels[used]])  # in the order in which they are fitted
        left_out = labels[np.setdiff1d(rows, used)]
        empty = np.setdiff1d(left_out, groups.labels)
        if len(empty):
            warn(
                f"{len(empty)} groups, the first of them {str(empty[0])!r}, are not fitted: a value is missing in each of their "
                "rows."
            )
        num_dropped = np.bincount(
            np.searchsorted(groups.labels, left_out[np.isin(left_out, groups.labels)]), minlength=len(groups.labels)
        )
        if isinstance(self.given, Grouped):
            result, table = self._fit_sets(self.given, groups, start, options)
            return self._with_table(replace(result, labels=groups.labels), table, num_dropped)
        result = fit_batch(
            self.model,
            self._start(start),
            self.data,
            given=self.given,
            weights=self.weights,
            by=labels[used],
            **options,
        )
        return self._with_table(result, self.table.take(groups.padded()) if groups.is_padded else None, num_dropped)

    def _fit_sets(self, grouped: Grouped, sets: Groups, start: PyTree, options: dict[str, Any]) -> tuple[Fit, Table]:
        """Of data sets that each have groups with effects, the fits, and the table of the rows of these groups, (B, G, m).

        A group is filled up by its last row, with weight zero there, and a data set by its last group, of weight zero.
        """
        assert self.groups is not None
        number = np.empty(int(sets.lengths.sum()), int)  # of the group of each row
        for k, rows in enumerate(self.groups.rows):
            number[rows] = k
        of_sets = [[rows[within] for within in groups_of([number[rows]]).rows] for rows in sets.rows]
        size, longest = max(map(len, of_sets)), max(len(rows) for groups in of_sets for rows in groups)
        places, counts = np.empty((len(of_sets), size, longest), int), np.zeros((len(of_sets), size, longest))
        for k, groups in enumerate(of_sets):
            for j in range(size):
                rows = groups[min(j, len(groups) - 1)]
                places[k, j] = np.concatenate([rows, np.repeat(rows[-1:], longest - len(rows))])
                counts[k, j, : len(rows)] = j < len(groups)

        # The arrays are over all groups: first those of the rows in their order, then those of the groups of each data set.
        order = np.argsort(np.concatenate(self.groups.rows))
        is_row = np.arange(grouped.weights.shape[1]) < self.groups.lengths[:, None]

        def place(leaf: Any) -> Any:
            return leaf[is_row][order][places]

        given = Grouped(jax.tree.map(place, grouped.rows), place(grouped.weights) * counts)
        leaves = jax.tree.leaves(given)
        is_shared = all(np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape)) for leaf in leaves)
        is_group = counts[..., 0]
        fits = fit_batch(
            self.model,
            self._start(start),
            jax.tree.map(place, self.data),
            given=jax.tree.map(lambda leaf: leaf[0], given) if is_shared else given,
            given_axis=None if is_shared else 0,
            weights=None if is_group.all() else is_group,
            **options,
        )
        return fits, TableOfGroups(self.table.native, self.table.name, np.asarray(self.table.rows)[places])

    def _start(self, start: PyTree) -> PyTree:
        """The start of a fit: the user's, or that of the formula in the precision that JAX has now."""
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        if start is not None:
            return start
        arrays = [np.asarray(leaf, dtype) for leaf in jax.tree.leaves(self.start)]
        return in_key_order(jax.tree.unflatten(jax.tree.structure(self.start), arrays), key_order(self.start))

    def _with_table(self, result: Fit, table: Table | None, num_dropped: Any) -> Fit:
        if np.any(num_dropped):
            masked = 0 if result.num_masked is None else result.num_masked
            result = replace(result, num_masked=np.asarray(num_dropped + masked))
        if result.origin is None or table is None:
            return result
        return replace(result, origin=Origin(result.origin.model, replace(result.origin.dataset, table=table)))

    @entry_point
    def summary(self) -> Report:
        """What is fitted: each parameter of the family with its link, its formula and its coefficients."""
        links, designs = dict(self.predictor.map.links), self.predictor.designs
        rows: list[tuple[str, ...]] = []
        for (name, link), design in zip(links.items(), designs, strict=True):
            rows.append((name, link, design.text, listed(design.names)))
        for name in self.predictor.map.scalars:
            rows.append((name, "", "one number", ""))
        for name in self.predictor.map.columns:
            rows.append((name, "", "a column of the table", ""))
        for effects in self.predictor.effects:
            formula = " + ".join(design.text for design in effects.designs)
            if len(effects.names) > 1:
                formula += ", correlated" if effects.correlated else ", independent"
            rows.append((f"effects | {effects.name}", "", formula, listed(effects.names)))
        n = len(self.table)
        dropped = f", {self.num_dropped} left out with missing values" if self.num_dropped else ""
        observations = f"{n}{dropped}"
        if self.groups is not None:
            each = [f"{len(of.levels) or len(self.groups.labels)} groups of {of.name}" for of in self.predictor.effects]
            observations = f"{n} rows in {listed(each)}{dropped}"
        facts = [("Formula", self.text), ("Observations", observations)]
        return Report(
            "A model from a formula", facts, [ReportTable(("parameter", "link", "formula", "coefficients"), rows)]
        )


@entry_point
def formula(
    text: str,
    family: Family,
    frame: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    exposure: Any = None,
    event: Any = None,
    upper: Any = None,
    links: str | Mapping[str, str] | None = None,
    missing: Literal["raise", "drop"] = "raise",
    prior: UserFunction | None = None,
    nodes: int = 1,
    reml: bool = False,
    **parameters: str | float,
) -> Formula:
    """The model and the data that a formula stands for: the parameters of a family as functions of the columns of a table.

    g(θⱼ) = zⱼᵀ βⱼ for each parameter θⱼ of the family that has a formula, g its link.

    Parameters
    ----------
    text : str
        ``"y ~ x + C(region)"``: the response, and the terms of the family's main parameter (the mean, the location, the rate, the
        logit; the scale of a Weibull). The language is that of formulaic: ``C(x)`` for categories, ``a:b``, ``a * b``, ``0 +`` for
        no constant, ``np.log(x)``, ``bs(x, df=4)``. Terms such as ``(1 + x | herd)`` are normal effects that the rows of a group
        share; see the notes.
    family : Family
        One of `fisher_jax.families`.
    frame : table
        Of pandas, polars or pyarrow; or a dictionary of columns.
    weights : str or array (n,), optional
        Frequency weights: a column, or an array.
    offset, exposure : str or array (n,), optional
        A column that is added to the linear predictor of the main parameter; and one whose logarithm is, for a log link.
    event : str or array (n,), optional
        1 where the response is the time of an event, 0 where there was none up to it (right-censored), as for `censored`. For
        families with a distribution function.
    upper : str or array (n,), optional
        Of responses that are known to lie in an interval only, its upper end, the response being the lower: equal where the value
        is known, infinite where it is only known to be larger; a response of −∞ is only known to be at most `upper`. As for
        `censored`.
    links : str or dict, optional
        The link of the main parameter, or of several by name. Default "log" for a positive parameter, "logit" for a probability,
        and "identity". Others: "probit", "cloglog", "loglog", "cauchit", "sqrt", "inverse", "inverse_squared". Those of the
        parameter `logit` are links of the probability.
    missing : {"raise", "drop"}
        Where a value is missing in one of the columns or arrays used (a null, NaN or NaT): raise an error that counts them, or
        leave the row out; the reports then state how many.
    prior : callable, optional
        Of the coefficients and other parameters, by their names in a report, as for `with_prior`:
        ``prior=fj.priors.ridge("x", "C(region)[T.b]")``. Its strength is an argument of `fit`.
    nodes : int
        Of a formula with effects, the points of the quadrature by which they are integrated out, as for `mixed`; 1 is Laplace's
        approximation.
    reml : bool
        Restricted maximum likelihood, of the normal family with effects and the identity link: the coefficients of the formula are
        integrated out, too. They are no parameters of the fit then; `predicted_effects` has their estimates, first of all.
    **parameters : str or float
        ``size="~ x"`` gives another parameter of the family a formula; a number holds it at that value; and a known constant of the
        family may be a column, ``trials="n"``. What is not named is estimated as one number, on its natural scale.

    Returns
    -------
    Formula
        With methods `fit` and `fit_batch`.

    Raises
    ------
    ValueError, TypeError
        For a formula that cannot be read; columns that are not there, hold times or objects, or share a name; missing values;
        parameters or links that do not exist.

    Notes
    -----
    Parameters are ``{"mean": (p,), "size": ()}``: coefficients on the scale of the link for a parameter with a formula, and a
    number on its own scale for one without. The categories of `categorical` are compared with the first, with coefficients
    (p, K − 1); those of `ordered_logit` and `ordered_probit` have cutpoints in place of a constant. Nothing is standardised.

    Text is categorical, with its levels sorted; the categories of pandas and polars' Enum keep their order, without those that do
    not occur; truths are 0 and 1, in one column named as the variable. A coefficient prints under the name that formulaic gives
    its column; those of other parameters than the main one as ``size[x]``.

    Effects are written as in lme4. On the left of the bar stands a formula whose columns each have an effect in every group, on the
    right the column of the table that makes the groups:

    - ``(1 | g)``: an intercept for each group;
    - ``(1 + x | g)``, the same as ``(x | g)``: an intercept and a slope, correlated;
    - ``(1 + x || g)``, the same as ``(1 | g) + (0 + x | g)``: independent ones, also those of the columns of one category;
    - ``(1 | g:h)``: the groups are the combinations of two columns;
    - ``(1 | g/h)``, the same as ``(1 | g) + (1 | g:h)``, and ``(1 | g) + (1 | h)``: effects of several factors, nested or crossed.

    They are added to the linear predictor of the main parameter. The model is one of `mixed`: its observations are the groups,
    whose number is `num_observations`; the estimates hold the standard deviations of independent effects,
    ``params["sd"]["g"]["Intercept"]``, printed as ``sd[Intercept | g]``, or the covariance matrix of correlated ones,
    ``params["covariance"]``; a weight is how often a row of its group was observed. With several factors all rows are one
    observation, and there is a covariance matrix for each factor, ``params["covariance"]["g"]``.

    References
    ----------
    Wilkinson, G. N. and Rogers, C. E. (1973), Symbolic description of factorial models for analysis of variance, Applied Statistics
    22, 392-399. Bates, D., Mächler, M., Bolker, B. and Walker, S. (2015), Fitting linear mixed-effects models using lme4, J. Stat.
    Softw. 67(1), section 2.1 and table 2.

    Examples
    --------
    >>> import fisher_jax as fj
    >>> ships = {"accidents": [0, 3, 6, 1, 12, 9], "service": [127, 1095, 3353, 748, 2244, 2117], "kind": list("aabbcc")}
    >>> fit = fj.formula("accidents ~ kind", fj.families.poisson, ships, exposure="service").fit()
    >>> print(fit.params["rate"].round(4))
    [-6.0096 -0.3634  0.6737]

    Counts of visits in clinics, which differ by a normal effect:

    >>> visits = {"clinic": list("aaabbbcccddd"), "week": [0, 1, 2] * 4, "count": [3, 4, 6, 0, 1, 1, 7, 9, 15, 2, 1, 4]}
    >>> fit = fj.formula("count ~ week + (1 | clinic)", fj.families.poisson, visits).fit()
    >>> print(fit.params["rate"].round(3), f"{fit.params['sd']['clinic']['Intercept']:.3f}")
    [0.674 0.407] 0.881
    """
    check_choice(missing, MISSING, "missing")
    if not isinstance(family, Family):
        hint = " The model of another density is built by fisher_jax.linked." if callable(family) else ""
        raise TypeError(f"family is {kind_of(family)}; expected one of fisher_jax.families.{hint}")
    frame = frame_of(frame, "frame")
    table = Table(frame, "the table")
    main = main_of(family)
    without_effects, effect_terms = split_effects(text, "formula")
    parsed = parse(without_effects, "formula")
    if getattr(parsed, "lhs", None) is None or len(parsed.lhs) != 1 or not hasattr(parsed.rhs, "required_variables"):
        raise ValueError(f"text={text!r} must have one response and one right-hand side, as in 'y ~ x + z'.")
    if not isinstance(links, str | Mapping | None):
        raise TypeError(
            f"links is {kind_of(links)}; expected the name of a link, or a dictionary of them by parameter."
        )
    roles = _roles(family, parameters, links)
    check_flag(reml, "reml")
    _check_effects(effect_terms, nodes, family, bool(reml))

    # The columns used, and the rows in which none of their values is missing.
    if event is not None and upper is not None:
        raise ValueError(
            "event= and upper= are two forms of censored data; give one. With upper= a time without its event is (time, inf]."
        )
    beside = {
        "weights": weights,
        "offset": offset,
        "exposure": exposure,
        "event": event,
        "upper": upper,
        **roles.columns,
    }
    terms = {main: parsed.rhs, **roles.terms}
    used = variables_of(parsed.lhs).union(*(variables_of(part) for part in terms.values()))
    for role, source in beside.items():
        if isinstance(source, str):
            table.series(source, f", which {role}= names")
            used.add(source)
    for term in effect_terms:
        for name in term.factor:
            table.series(name, f", by which {term.text} makes groups")
        used |= {*term.factor, *variables_of(_columns_of(term))}
    for name in sorted(used):
        table.series(name)
    arrays = {role: _array(source, role, frame, table) for role, source in beside.items()}
    places = table.missing(sorted(used))
    places |= {
        f"{role}=": np.isnan(values)
        for role, values in arrays.items()
        if values is not None and np.any(np.isnan(values))
    }
    if places and missing == "raise":
        raise ValueError(describe_missing(places, "the table", len(table)))
    left_out = np.any(list(places.values()), axis=0) if places else np.zeros(len(table), bool)
    rows = np.flatnonzero(~left_out)
    if len(rows) == 0:
        raise ValueError(
            "the table has no rows."
            if not places
            else f"no row is left: {describe_missing(places, 'the table', len(table))}"
        )
    view = table.take(rows)
    numbers = {
        role: view.numbers(source, f", which is the {role}") if isinstance(source, str) else arrays[role][rows]
        for role, source in beside.items()
        if source is not None
    }

    response, levels = _response(family, parsed.lhs, view)
    is_ordered = "cutpoints" in family.parameters
    designs: list[Design] = []
    given: dict[str, Any] = {}
    for name, part in terms.items():
        without = "Intercept" if is_ordered and name == main else ""
        design, given[name] = Design.of(part, table, rows, without=without)
        designs.append(design)
    constants = []
    for role in ("offset", "exposure", *roles.columns):
        if role in numbers:
            if not np.all(np.isfinite(numbers[role])):
                row = rows[np.argmin(np.isfinite(numbers[role]))]
                raise ValueError(f"{role} must be finite; in row {row} it is not. Leave such rows out.")
            constants.append(Constant(role, beside[role] if isinstance(beside[role], str) else None))
    if "exposure" in numbers and roles.links[main] != "log":
        raise ValueError(
            f"an exposure belongs to a log link, but that of `{main}` is {roles.links[main]!r}. Give offset=."
        )
    given |= constant_covariates({part.role: numbers[part.role] for part in constants}, rows)
    effects, of_effects = _effects(effect_terms, table, rows, reml)
    given |= effect_covariates(of_effects)
    for each in effects:
        if each.levels and each.name in given:
            raise ValueError(
                f"the column {each.name!r} makes groups, and has the name of other covariates of this model. Rename the column."
            )
        given |= {each.name: each.codes(view)} if each.levels else {}
    data: PyTree = response
    base: Model = family
    if event is not None:
        base = censored(family)
        happened = numbers["event"]
        if not np.isin(happened, (0, 1)).all():
            wrong = int(np.argmin(np.isin(happened, (0, 1))))
            raise ValueError(
                f"event must be 0 or 1 (1 where the event happened); in row {rows[wrong]} it is {happened[wrong]:g}."
            )
        data = {"time": response, "event": happened}
    if upper is not None:
        base = censored(family)
        data = {"low": response, "high": numbers["upper"]}
        if not np.all(data["low"] <= data["high"]):
            wrong = int(np.argmin(data["low"] <= data["high"]))
            raise ValueError(
                f"upper must not be less than the response; in row {rows[wrong]} they are {data['high'][wrong]:g} and "
                f"{data['low'][wrong]:g}."
            )
        response = middles(data["low"], data["high"])

    predictor = Predictor(
        LinearPredictors(
            tuple((name, roles.links[name]) for name in terms),
            tuple(name for name in family.parameters if name not in terms and name not in roles.columns),
            tuple(roles.columns),
            "offset" in given or bool(effects),
        ),
        tuple(designs),
        tuple(constants),
        levels,
        effects,
    )
    constraints = {name: constraint for name, constraint in roles.constraints.items() if name in predictor.map.scalars}
    constraints |= dict.fromkeys(roles.values, fixed)
    names = _names(family, predictor)
    start = _start(family, roles, predictor, response, given, levels)
    frequency = as_weights(numbers["weights"], "weights") if "weights" in numbers else None
    num_dropped = int(left_out.sum())
    if not effects:
        model = with_prior(linked(base, predictor, constraints=constraints, names=names), prior)
        return Formula(text, model, start, data, given, frequency, view, num_dropped)
    zeros = {each.name: dict.fromkeys(each.names, 0.0) for each in effects}
    is_location = main != "logit" and default_link(main, roles.constraints.get(main)) == "identity"
    unit = _unit_of_effects(roles.links[main], main, is_location, response, start)
    start |= _of_effects(effects, lambda each: _start_of_effects(each, of_effects[each.name], unit))
    names |= _of_effects(effects, _names_of_effects)
    options: dict[str, Any] = {"constraints": constraints, "names": names, "nodes": nodes}
    if not effects[0].levels:
        model = mixed(base, predictor, zeros, correlated=effects[0].correlated, **options)
        groups = groups_of_rows(effects[0].factor, view)
    else:
        num_levels = {each.name: len(each.levels) for each in effects}
        correlated = [each.name for each in effects if each.correlated]
        if reml:
            options["reml"] = {main: np.zeros_like(start.pop(main))}
        model = mixed(base, predictor, zeros, levels=num_levels, correlated=correlated, **options)
        groups = Groups(np.array(["all rows"]), [np.arange(len(rows))])
    in_groups = Grouped(*_in_groups(groups, given, frequency), groups.labels)
    model = with_prior(model, prior)
    return Formula(text, model, start, _in_groups(groups, data)[0], in_groups, None, view, num_dropped, groups)


def main_of(family: Family) -> str:
    """The parameter that the formula with the response describes; raise where there is none."""
    if family.main is None:
        raise ValueError(f"{family!r} has vectors for observations, which no formula describes. Use fisher_jax.linked.")
    return family.main


@dataclass(frozen=True)
class _Roles:
    """What each parameter of the family is.

    `terms` are those of parameters with a formula besides the main one, `values` the numbers at which parameters are held,
    `columns` those of parameters that the family takes as known, `links` the links, `constraints` the family's.
    """

    terms: dict[str, Any]
    values: dict[str, float]
    columns: dict[str, str]
    links: dict[str, str]
    constraints: dict[str, Constraint]


def _roles(family: Family, parameters: Mapping[str, Any], links: str | Mapping[str, str] | None) -> _Roles:
    """What the keywords define for the parameters of the family; raise for those that it does not have."""
    constraints = {
        path[0]: c.constraint if isinstance(c, Bounds) else c for path, c in family.declarations.constraints if path
    }
    terms, values, columns = {}, {}, {}
    others = [name for name in family.parameters if name != main_of(family)]
    for name, given in parameters.items():
        if name not in others:
            what = "is described by the formula itself" if name == main_of(family) else "is no parameter of it"
            having = (
                f" Besides `{main_of(family)}` it has {listed(others)}."
                if others
                else f" It has `{main_of(family)}` alone."
            )
            raise ValueError(
                f"{name}= {what}: {family!r}.{having} {suggestion(name, others) if others else ''}".rstrip()
            )
        is_constant = isinstance(constraints.get(name), Fixed)
        if is_number(given):
            values[name] = float(given)
        elif isinstance(given, str) and given.lstrip().startswith("~"):
            if is_constant:
                raise ValueError(f"{name} is a known constant of {family!r}; give a number or the name of a column.")
            if name == "cutpoints":
                raise ValueError("cutpoints have no formula; their shift by covariates is the formula of `loc`.")
            without_effects, effect_terms = split_effects(given, f"the formula of {name}")
            if effect_terms:
                raise ValueError(
                    f"the formula of {name} has effects, {effect_terms[0].text}; only that of "
                    f"`{main_of(family)}`, the first one, may have them. Write other models by fisher_jax.mixed."
                )
            terms[name] = parse(without_effects, f"the formula of {name}")
        elif isinstance(given, str) and is_constant:
            columns[name] = given
        else:
            raise ValueError(f"{name}={given!r}: give a formula, as in {name}='~ x', or a number to hold it at.")
    for name in others:
        if isinstance(constraints.get(name), Fixed) and name not in values and name not in columns:
            raise ValueError(f"{family!r} needs {name}: give {name}= a number, or the name of a column of the table.")
    with_formula = (main_of(family), *terms)
    chosen = {main_of(family): links} if isinstance(links, str) else dict(links or {})
    result = {}
    for name in with_formula:
        if name == "logits":
            result[name] = "logit"
            choices: Any = ("logit",)
        else:
            result[name] = default_link(name, constraints.get(name)) if name not in chosen else chosen[name]
            choices = links_of(name)
        check_choice(chosen.get(name, result[name]), choices, f"the link of {name}")
    for name in chosen:
        if name not in with_formula:
            raise ValueError(
                f"links names {name!r}, which has no formula; those that have one are {listed(with_formula)}."
            )
    if main_of(family) == "loc" and "cutpoints" in family.parameters and result["loc"] != "identity":
        raise ValueError(
            "the link of an ordered family is its own: choose families.ordered_logit or families.ordered_probit."
        )
    return _Roles(terms, values, columns, result, constraints)


def _check_effects(terms: tuple[EffectTerm, ...], nodes: Any, family: Family, reml: bool) -> None:
    """Raise for effects that there is no model of, and for what belongs to effects without them."""
    if not terms and reml:
        raise ValueError(
            "reml=True is for formulas with effects, such as (1 | g). Of a linear model without them the estimate of the variance "
            "by restricted maximum likelihood is the sum of squared residuals divided by n − p."
        )
    if reml and nodes != 1:
        raise ValueError(f"nodes={shown(nodes)} with reml=True: the integral is exact without more. Leave nodes out.")
    if not terms:
        if nodes != 1:
            raise ValueError(
                f"nodes={shown(nodes)} is the number of points at which effects are integrated, and the formula has no effects, "
                "such as (1 | g). Leave nodes out."
            )
        return
    if main_of(family) == "logits":
        raise ValueError(
            f"{family!r} has a linear predictor for each category, for which {terms[0].text} would need effects of its own. Write "
            "the model by fisher_jax.mixed; categories that have an order by families.ordered_logit."
        )
    factors = list(dict.fromkeys(term.factor_name for term in terms))
    if len(factors) > 1 and nodes != 1:
        raise ValueError(
            f"nodes={shown(nodes)} points for each combination of the effects of {listed(factors)} are too many. Leave nodes out: "
            "several factors have Laplace's approximation."
        )


def _columns_of(term: EffectTerm) -> Any:
    """The left of a bar as formulaic reads it."""
    columns = parse(term.columns, f"the left of the bar in {term.text},")
    if hasattr(columns, "lhs") or not hasattr(columns, "required_variables"):
        raise ValueError(f"the left of the bar in {term.text} must be one right-hand side, as in (1 + x | g).")
    if len(columns) == 0:
        raise ValueError(f"the left of the bar in {term.text} has no column. For an intercept write (1 | g).")
    return columns


def _effects(
    terms: tuple[EffectTerm, ...], table: Table, rows: np.ndarray, reml: bool
) -> tuple[tuple[EffectDesign, ...], dict[str, np.ndarray]]:
    """The designs of the effects of each factor, and the columns that multiply them."""
    effects, matrices = [], {}
    has_levels = reml or len({term.factor for term in terms}) > 1  # where all rows are one observation
    for factor in dict.fromkeys(term.factor for term in terms):
        of_factor = [term for term in terms if term.factor == factor]
        designs, parts = zip(*(Design.of(_columns_of(term), table, rows) for term in of_factor), strict=True)
        texts = " + ".join(dict.fromkeys(term.text for term in of_factor))
        names = [name for design in designs for name in design.names]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"the effect `{repeated[0]}` is twice in {texts}. A column by itself, without a constant, is (0 + x | g)."
            )
        correlated = [
            term.correlated and len(design.names) > 1 for term, design in zip(of_factor, designs, strict=True)
        ]
        if any(correlated) and len(of_factor) > 1:
            raise ValueError(
                f"{texts}: effects of the same groups are all correlated, in one term such as (1 + x + z | g), or all independent, "
                "as in (1 + x + z || g)."
            )
        groups = groups_of_rows(factor, table.take(rows))
        if len(groups.labels) == 1:
            raise ValueError(
                f"all rows are in one group of {':'.join(factor)}, {str(groups.labels[0])!r}; the effects {texts} need several."
            )
        levels = tuple(groups.labels.tolist()) if has_levels else ()
        effects.append(EffectDesign(factor, designs, any(correlated), levels))
        matrices[effects[-1].name] = np.concatenate(parts, axis=1)
    return tuple(effects), matrices


def _in_groups(groups: Groups, rows: PyTree, frequency: Any = None) -> tuple[PyTree, np.ndarray]:
    """Arrays (n, …) as (G, m, …), the last row of a group again where it has fewer, and how often each row counts (G, m)."""
    padded = groups.padded()
    counts = (np.arange(padded.shape[1]) < groups.lengths[:, None]).astype(float)
    if frequency is not None:
        is_valid = np.isfinite(frequency) & (frequency >= 0)
        if not is_valid.all():
            wrong = int(np.argmin(is_valid))
            raise ValueError(f"weights must be finite and not negative; of row {wrong} it is {frequency[wrong]}.")
        counts = counts * np.asarray(frequency)[padded]
    return jax.tree.map(lambda leaf: leaf[padded], rows), counts


def _array(source: Any, role: str, frame: Any, table: Table) -> Any:
    """What came as an array in place of a column, checked against the table; None for a column."""
    if source is None or isinstance(source, str):
        return None
    values = np.asarray(as_weights(source, role), float)
    if values.shape != (len(table),):
        raise ValueError(
            f"{role} has shape {values.shape}, but the table has {len(table)} rows. Give a column or an array (n,)."
        )
    check_same_labels(_labels({"the table": frame, role: source}))
    return values


def _labels(parts: dict[str, Any]) -> list[Labels]:
    """The labels that pandas gives to the rows of each."""
    return [Labels(name, ("observations", "index"), of[0]) for name, part in parts.items() if (of := labels_of(part))]


def _response(family: Family, terms: Any, view: Table) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The response as numbers, and its categories where the family has such."""
    (term,) = terms
    text = str(term)
    is_column = text.strip("`") in view.names
    if main_of(family) == "logits" or "cutpoints" in family.parameters:
        if not is_column:
            raise ValueError(f"the response {text!r} of {family!r} must be a column of the table.")
        column = frame_for(view, [text.strip("`")]).iloc[:, 0]
        levels = list(column.cat.categories) if column.dtype == "category" else sorted(column.unique().tolist())
        if len(levels) < 2:
            raise ValueError(f"the response {text!r} has one category only, {levels[0]!r}.")
        places = {level: k for k, level in enumerate(levels)}
        return np.array([places[level] for level in column.tolist()], float), tuple(levels)
    if is_column:
        try:
            return view.numbers(text.strip("`")), ()
        except TypeError as error:
            raise TypeError(
                f"the response {text!r} holds {view.series(text.strip('`')).dtype}, but {family!r} takes numbers. Make 0 and 1 of "
                "two categories, as in 'I(grade == \"A\") ~ x'; for more take families.categorical or families.ordered_logit."
            ) from error
    _, matrix = Design.of(terms, view, np.arange(len(view)))
    if matrix.shape[1] != 1:
        raise ValueError(f"the response {text!r} is not one column of numbers.")
    return matrix[:, 0], ()


def _names(family: Family, predictor: Predictor) -> dict[str, tuple[str, ...]]:
    """The names of coefficients: of the main parameter bare, as regressions print them, of others with the parameter's name.

    Where there are categories: `x[b]` for category b against the first, and `cutpoints[a|b]` for the one between two.
    """
    names: dict[str, tuple[str, ...]] = {}
    for (name, _), design in zip(predictor.map.links, predictor.designs, strict=True):
        names[name] = design.names if name == main_of(family) else tuple(f"{name}[{column}]" for column in design.names)
    names = {name: given for name, given in names.items() if given}  # of cutpoints alone there are no coefficients
    levels = predictor.levels
    if main_of(family) == "logits":
        names["logits"] = tuple(f"{column}[{level}]" for column in names["logits"] for level in levels[1:])
    elif levels:
        names["cutpoints"] = tuple(f"cutpoints[{a}|{b}]" for a, b in itertools.pairwise(levels))
    return names


def _of_effects(effects: tuple[EffectDesign, ...], value: Callable[[EffectDesign], Any]) -> dict[str, Any]:
    """What belongs to the distribution of effects, under the names of the parameters: by factor, but for one covariance matrix."""
    result: dict[str, Any] = {}
    for each in effects:
        if each.correlated and not each.levels:
            return {COVARIANCE: value(each)}
        result.setdefault(COVARIANCE if each.correlated else SD, {})[each.name] = value(each)
    return result


def _names_of_effects(effects: EffectDesign) -> Any:
    """The names of standard deviations, `sd[x | g]`, or of the entries of the covariance matrix, `covariance[x, z | g]`."""
    if not effects.correlated:
        return {name: (f"{SD}[{name} | {effects.name}]",) for name in effects.names}
    pairs = itertools.product(effects.names, repeat=2)
    return tuple(
        f"variance[{a} | {effects.name}]" if a == b else f"{COVARIANCE}[{a}, {b} | {effects.name}]" for a, b in pairs
    )


def _unit_of_effects(link: str, main: str, is_location: bool, response: np.ndarray, start: dict[str, Any]) -> float:
    """A change of the linear predictor from which its effects start: one, or of a location as much as the response varies.

    Where a linear predictor has limits, as the logarithm of a probability, it is a part of where that starts.
    """
    if is_location and link == "identity":
        return float(np.std(response)) or 1.0
    if link in ("identity", "sqrt", "inverse", "inverse_squared") or (main == "logit" and link == "log"):
        return 0.2 * float(np.max(np.abs(start[main]))) or 1.0
    return 1.0


def _start_of_effects(effects: EffectDesign, matrix: np.ndarray, unit: float) -> Any:
    """Standard deviations with which each effect changes the linear predictor of a usual row by the unit."""
    size = np.sqrt(np.mean(matrix**2, axis=0))
    deviations = unit / np.where(size > 0, size, 1.0)
    return np.diag(deviations**2) if effects.correlated else dict(zip(effects.names, deviations.tolist(), strict=True))


def _start(
    family: Family,
    roles: _Roles,
    predictor: Predictor,
    response: np.ndarray,
    given: dict[str, np.ndarray],
    levels: tuple[Any, ...],
) -> dict[str, Any]:
    """The family's starting values for a sample without covariates, through the links, and zero slopes."""
    if main_of(family) == "logits" or "cutpoints" in family.parameters:
        counts = np.bincount(response.astype(int), minlength=len(levels)) + 0.5
        if main_of(family) == "logits":
            matrix = given["logits"]
            eta = np.log(counts[1:] / counts[0])
            return {"logits": np.stack([_coefficients(matrix, target, predictor.designs[0]) for target in eta], axis=1)}
        below = np.cumsum(counts)[:-1] / counts.sum()
        cutpoints = np.array(
            [links_of("p")["probit" if "probit" in family.name else "logit"].forward(p) for p in below]
        )
        return {main_of(family): np.zeros(len(predictor.designs[0].names)), "cutpoints": cutpoints}
    if "trials" in family.parameters:
        trials = roles.values["trials"] if "trials" in roles.values else given["trials"]
        total = float(np.sum(np.broadcast_to(trials, response.shape)))
        p = float(
            np.clip((response.sum() + 0.5) / (total + 1.0), 1e-6, 1.0 - 1e-6)
        )  # the status explains more than all
        zeros = float(np.clip(np.mean(response == 0), 0.05, 0.95))
        natural = {"logit": np.log(p / (1.0 - p)), "probability": p, "concentration": 10.0}
        natural |= {INFLATION: 0.5 * zeros, ZERO: zeros}
    elif family.initial is None:
        raise ValueError(f"{family!r} has no starting values of its own.")
    else:
        natural = {name: float(value) for name, value in family.initial(response).items()}
    start: dict[str, Any] = {}
    for k, ((name, link), design) in enumerate(zip(predictor.map.links, predictor.designs, strict=True)):
        try:
            target = float(links_of(name)[link].forward(natural[name]))
        except (ValueError, ZeroDivisionError, OverflowError):
            target = np.nan
        if not np.isfinite(target):
            raise ValueError(
                f"the link {link!r} of `{name}` has no linear predictor for its value without covariates, {natural[name]:.6g}. "
                "Choose another link."
            )
        if k == 0 and "offset" in given:
            target -= float(np.mean(given["offset"]))
        start[name] = _coefficients(given[name], target, design)
    return start | {name: roles.values.get(name, natural.get(name)) for name in predictor.map.scalars}


def _coefficients(matrix: np.ndarray, target: float, design: Design) -> np.ndarray:
    """Coefficients whose linear predictor is nearest to a constant: the constant itself and zero slopes where there is one."""
    coefficients = np.zeros(matrix.shape[1])
    if "Intercept" in design.names:
        coefficients[design.names.index("Intercept")] = target
        return coefficients
    return np.linalg.lstsq(matrix, np.full(len(matrix), target), rcond=None)[0]
