"""Fits in files without pickle: their arrays, and as JSON how they belong together, in one .npz."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from fisher_jax.errors import entry_point
from fisher_jax.fitting.result import Fit
from fisher_jax.models import constraints
from fisher_jax.models.constraints import Constraint
from fisher_jax.models.parameters import _ARRAY, Layout, Leaf, in_key_order, key_order

FORMAT = "fisher_jax fit, version 1"
_ARRAYS = [
    field.name
    for field in fields(Fit)
    if field.name not in ("values", "layout", "kinds", "engine", "robust", "prior", "origin", "optima")
]
_NAMED: dict[str, Constraint] = {
    "unconstrained": constraints.Unconstrained(),
    "ordered": constraints.ordered,
    "simplex": constraints.simplex,
    "positive_definite": constraints.positive_definite,
    "fixed": constraints.fixed,
}


def save(fit: Fit, path: str | os.PathLike[str]) -> None:
    """Write a fit, or many, to a file; see `Fit.save`."""
    layout = fit.layout
    header = {
        "format": FORMAT,
        "kinds": fit.kinds,
        "engine": fit.engine,
        "robust": fit.robust,
        "prior": fit.prior,
        "dtype": str(layout.dtype),
        "leaves": [
            [leaf.name, leaf.shape, leaf.free_shape, _constraint_as_json(leaf.constraint)] for leaf in layout.leaves
        ],
        "names": [leaf.given_names for leaf in layout.leaves],
        "tree": _tree_as_json(in_key_order(jax.tree.unflatten(layout.treedef, layout.statics), layout.key_order)),
    }
    arrays = {name: np.asarray(getattr(fit, name)) for name in _ARRAYS if getattr(fit, name) is not None}
    arrays |= {f"values {k}": np.asarray(value) for k, value in enumerate(fit.values)}
    with Path(path).open("wb") as file:  # a file, or numpy would add its own ending to the name
        np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)


@entry_point
def load(path: str | os.PathLike[str], *, like: PyTree = None) -> Fit:
    """Read a fit, or many, that `Fit.save` wrote.

    Parameters
    ----------
    path : path
        The file.
    like : pytree, optional
        Parameters with the structure of those that were fitted. Needed where that is none of dictionaries, lists, tuples and
        `None`, such as a dataclass or a module.

    Returns
    -------
    Fit
        With arrays of numpy. Its `origin` is None, for the model and the data are not in the file: profiles, `robust` and the
        bootstrap cannot be asked of it.

    Raises
    ------
    ValueError
        If the file is no fit, or the structure of the parameters is not in it and `like` is missing or has other arrays.

    Examples
    --------
    >>> import fisher_jax as fj, jax.numpy as jnp, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weibull.npz"
    >>> fj.fit(fj.families.weibull, {"shape": 1.0, "scale": 1.0}, jnp.array([1.0, 2.0, 3.0, 6.0])).save(path)
    >>> fit = fj.load(path)
    >>> print(fit.status, f"{fit.params['shape']:.3f} ± {fit.standard_errors()['shape']:.3f}")
    converged 1.704 ± 0.662
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays.pop("header"))) if "header" in arrays else {}
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} holds no fit that this version of fisher_jax can read; Fit.save writes one.")
    leaves = tuple(
        Leaf(
            name,
            tuple(shape),
            tuple(free_shape),
            _NAMED[given] if isinstance(given, str) else constraints.Interval(float(given[0]), float(given[1])),
            tuple(names),
        )
        for (name, shape, free_shape, given), names in zip(header["leaves"], header["names"], strict=True)
    )
    if like is None:
        tree = _tree_from_json(header["tree"])
    else:  # what is no array stands in `like` as it stood among the parameters
        is_array = [isinstance(leaf, bool | int | float) or hasattr(leaf, "dtype") for leaf in jax.tree.leaves(like)]
        shapes = [np.shape(leaf) for leaf, array in zip(jax.tree.leaves(like), is_array, strict=True) if array]
        if shapes != [leaf.shape for leaf in leaves]:
            saved = ", ".join(f"{leaf.name}: {leaf.shape}" for leaf in leaves)
            raise ValueError(f"the arrays of like have shapes {shapes}, but the fit's are {saved}.")
        marks = [_ARRAY if array else leaf for leaf, array in zip(jax.tree.leaves(like), is_array, strict=True)]
        tree = in_key_order(jax.tree.unflatten(jax.tree.structure(like), marks), key_order(like))
    statics, treedef = jax.tree.flatten(tree)
    layout = Layout(leaves, np.dtype(header["dtype"]), treedef, tuple(statics), key_order(tree))
    optional: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    return Fit(
        values=[arrays[f"values {k}"] for k in range(len(leaves))],
        **optional,
        layout=layout,
        kinds=tuple(header["kinds"]),
        engine=header["engine"],
        robust=header["robust"],
        prior=header.get("prior", ""),
    )


def _tree_as_json(tree: Any) -> Any:
    """A pytree of marks: a string for an array, `None`, or a pair of a container's kind and what it holds."""
    if tree is _ARRAY:
        return "array"
    if tree is None:
        return None
    if type(tree) is dict and all(isinstance(key, str | int) and not isinstance(key, bool) for key in tree):
        return ["dict", [[key, _tree_as_json(part)] for key, part in tree.items()]]
    if type(tree) in (list, tuple):
        return [type(tree).__name__, [_tree_as_json(part) for part in tree]]
    return "other"


def _tree_from_json(given: Any) -> Any:
    if given == "array":
        return _ARRAY
    if given is None:
        return None
    if given == "other":
        raise ValueError(
            "the parameters were a pytree of a kind that is not in the file. Give parameters of the same structure: "
            "load(path, like=params)."
        )
    kind, parts = given
    if kind == "dict":
        return {key: _tree_from_json(part) for key, part in parts}
    return (list if kind == "list" else tuple)(map(_tree_from_json, parts))


def _constraint_as_json(constraint: Constraint) -> Any:
    if isinstance(constraint, constraints.Interval):
        return [repr(constraint.low), repr(constraint.high)]  # JSON has no infinity
    for name, named in _NAMED.items():
        if constraint == named:
            return name
    raise ValueError(
        f"the constraint {constraint!r} is not one of fisher_jax's, and a file without pickle cannot hold it. Keep "
        "`params` and `covariance()`, or use pickle."
    )
