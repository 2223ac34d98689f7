"""Robust covariances of a regression against linearmodels, on the panel of wages that it ships."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from linearmodels.datasets import wage_panel
from linearmodels.iv import IV2SLS

import fisher_jax as fj


def linear(params, y, x):
    return norm.logpdf(y, x @ params["beta"], jnp.exp(params["log_sigma"]))


@functools.cache
def wages():
    """Our fit, linearmodels' regression, and the labels of persons and years."""
    data = wage_panel.load()
    y = data["lwage"].to_numpy(float)
    x = np.column_stack([np.ones(len(y)), data[["expersq", "union", "married"]].to_numpy(float)])
    start = {"beta": np.array([1.5, 0.0, 0.0, 0.0]), "log_sigma": -0.7}
    return fj.fit(linear, start, y, given=x), IV2SLS(y, x, None, None), data[["nr", "year"]].to_numpy()


WAYS = {
    "by person": ({"clusters": 0}, {"cov_type": "clustered"}),
    "by person and year": ({"clusters": (0, 1)}, {"cov_type": "clustered"}),
    "heteroscedastic": ({}, {"cov_type": "robust"}),
    "serial": ({"lags": 5}, {"cov_type": "kernel", "kernel": "bartlett", "bandwidth": 5}),
}


@pytest.mark.parametrize("name", WAYS)
def test_robust_covariances_are_those_of_linearmodels(name):
    fit, regression, labels = wages()
    ours, theirs = WAYS[name]
    columns = ours.get("clusters")
    if columns is not None:
        given = labels[:, columns] if isinstance(columns, int) else tuple(labels[:, k] for k in columns)
        ours, theirs = {"clusters": given}, {**theirs, "clusters": labels[:, columns]}
    expected = np.asarray(regression.fit(debiased=False, **theirs).cov)
    found = np.asarray(fj.robust(fit, correction="none", **ours).covariance("sandwich"))[:4, :4]
    scale = np.sqrt(np.diagonal(expected))
    np.testing.assert_allclose(found / np.outer(scale, scale), expected / np.outer(scale, scale), rtol=0, atol=1e-8)
