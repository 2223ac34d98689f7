"""Families of distributions: each a `fisher_jax.Model` with its sampler and, where one exists, its information in closed form.

| family | parameters | values of y |
|---|---|---|
| `bernoulli` | logit | 0 or 1 |
| `beta` | a, b | between 0 and 1 |
| `beta_binomial` | probability, concentration, trials (fixed) | 0, …, trials |
| `binomial` | logit, trials (fixed) | 0, …, trials |
| `categorical` | logits (K,) | 0, …, K − 1 |
| `cauchy` | loc, scale | real |
| `censored_exponential` | rate, limit (fixed) | {"time", "event"}, time up to limit |
| `dirichlet` | concentration (K,) | (K,) positive, summing to one |
| `exponential` | rate | not negative |
| `gamma` | shape, rate | positive |
| `generalized_pareto` | scale, shape | not negative; up to −scale/shape where shape < 0 |
| `geometric` | probability | 1, 2, … |
| `gev` | loc, scale, shape | real, with an end at loc − scale/shape |
| `gumbel` | loc, scale | real |
| `half_normal` | scale | not negative |
| `inverse_gaussian` | mean, shape | positive |
| `laplace` | loc, scale | real |
| `log_logistic` | scale, shape | positive |
| `logistic` | loc, scale | real |
| `lognormal` | loc, scale (of log y) | positive |
| `multivariate_normal` | loc (d,), covariance (d, d) | (d,) real |
| `negative_binomial` | mean, size | 0, 1, … |
| `normal` | loc, scale | real |
| `ordered_logit` | loc, cutpoints (K − 1,) | 0, …, K − 1 |
| `ordered_probit` | loc, cutpoints (K − 1,) | 0, …, K − 1 |
| `pareto` | shape, minimum (fixed) | from minimum on |
| `poisson` | rate | 0, 1, … |
| `rayleigh` | scale | positive |
| `skew_normal` | loc, scale, shape | real |
| `student_t` | df, loc, scale | real |
| `von_mises` | loc, concentration | an angle in radians |
| `weibull` | shape, scale | positive |
| `zero_inflated_poisson` | inflation, rate | 0, 1, … |

`params` is a dictionary with these keys; `fixed` ones are known constants, never estimated, and have zeros in the information.
Log-densities are normalised, take integers where y is one, and are −inf outside the support, with finite derivatives.

Families of a single number have `log_cdf(params, y)` = log P(Y ≤ y) and `log_survival(params, y)` = log P(Y > y), each accurate to
rounding where it is small, with derivatives, and `quantile(uniform, params)`; of counts and categories for every real y, and the
quantile is the least y whose probability is reached.

``help(families.gev)`` prints what there is to know of a family: its formula, its parameters with their ranges and signs, its
information, the same distribution in scipy, and where a fit starts. Names mean the same in every family: `loc` and `scale` are
those of z = (y − loc) / scale (of log y for `lognormal`); a `rate` is the mean of a count, and of a duration one divided by its
mean; a larger `shape` of an extreme-value family makes the upper tail heavier; a `logit` is log(p / (1 − p)) of a `probability`
p; a `concentration` is large where observations vary little.

A fit that is given no starting values, ``fit(families.gev, None, y)``, starts from those of the family, which need no iteration:
moments, quantiles, or the maximum itself where it is explicit. `binomial`, `beta_binomial`, `categorical` and the ordered
ones have none, since the data do not determine the number of trials or categories.

Examples
--------
>>> import fisher_jax as fj
>>> from fisher_jax import families
>>> print(fj.fisher_information(families.poisson, {"rate": 4.0}).matrix)
[[0.25]]
>>> families.gev
families.gev(loc, scale, shape)
>>> fit = fj.fit(families.exponential, None, [0.5, 2.0, 3.5])
>>> print(f"{fit.params['rate']:.2f}")
0.50
"""

from fisher_jax.families.binary import bernoulli, beta_binomial, binomial, categorical
from fisher_jax.families.circular import von_mises
from fisher_jax.families.counts import geometric, negative_binomial, poisson, zero_inflated_poisson
from fisher_jax.families.durations import censored_exponential, exponential, log_logistic, weibull
from fisher_jax.families.extremes import generalized_pareto, gev, gumbel
from fisher_jax.families.location_scale import cauchy, laplace, logistic, normal, skew_normal, student_t
from fisher_jax.families.multivariate import multivariate_normal
from fisher_jax.families.ordinal import ordered_logit, ordered_probit
from fisher_jax.families.positive import gamma, half_normal, inverse_gaussian, lognormal, pareto, rayleigh
from fisher_jax.families.proportions import beta, dirichlet

__all__ = [
    "bernoulli",
    "beta",
    "beta_binomial",
    "binomial",
    "categorical",
    "cauchy",
    "censored_exponential",
    "dirichlet",
    "exponential",
    "gamma",
    "generalized_pareto",
    "geometric",
    "gev",
    "gumbel",
    "half_normal",
    "inverse_gaussian",
    "laplace",
    "log_logistic",
    "logistic",
    "lognormal",
    "multivariate_normal",
    "negative_binomial",
    "normal",
    "ordered_logit",
    "ordered_probit",
    "pareto",
    "poisson",
    "rayleigh",
    "skew_normal",
    "student_t",
    "von_mises",
    "weibull",
    "zero_inflated_poisson",
]
