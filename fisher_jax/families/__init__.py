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
| `logistic` | loc, scale | real |
| `lognormal` | loc, scale (of log y) | positive |
| `multivariate_normal` | loc (d,), covariance (d, d) | (d,) real |
| `negative_binomial` | mean, size | 0, 1, … |
| `normal` | loc, scale | real |
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
The formula of each, the ranges of its parameters and its information stand with its log-density, `gamma_log_density` in
`positive.py` and so on.

Examples
--------
>>> import fisher_jax as fj
>>> from fisher_jax import families
>>> print(fj.fisher_information(families.poisson, {"rate": 4.0}).matrix)
[[0.25]]
"""

from fisher_jax.families.binary import bernoulli, beta_binomial, binomial, categorical
from fisher_jax.families.circular import von_mises
from fisher_jax.families.counts import geometric, negative_binomial, poisson, zero_inflated_poisson
from fisher_jax.families.durations import censored_exponential, exponential, weibull
from fisher_jax.families.extremes import generalized_pareto, gev, gumbel
from fisher_jax.families.location_scale import cauchy, laplace, logistic, normal, skew_normal, student_t
from fisher_jax.families.multivariate import multivariate_normal
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
    "logistic",
    "lognormal",
    "multivariate_normal",
    "negative_binomial",
    "normal",
    "pareto",
    "poisson",
    "rayleigh",
    "skew_normal",
    "student_t",
    "von_mises",
    "weibull",
    "zero_inflated_poisson",
]
