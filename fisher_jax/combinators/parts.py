"""Functions of the models that another is made of, with covariates for those that take them."""

import inspect
from typing import Any

from fisher_jax.errors import kind_of, names_in, shown
from fisher_jax.models.model import Model, as_model
from fisher_jax.models.programs import UserFunction


def check_model(model: Any, name: str) -> Model:
    """The model meant by a `Model` or a log-density; raise, with the argument's name, for anything else."""
    if not isinstance(model, Model) and (isinstance(model, type) or not callable(model)):
        raise TypeError(
            f"{name}: expected a fisher_jax.Model or a function log_density(params, y), got {kind_of(model)}."
        )
    return as_model(model)


def check_names(names: Any, argument: str) -> tuple[str, ...]:
    """Names of parameters, from one or a sequence of them; raise, with the argument's name, for anything else."""
    checked = tuple(names_in(names))
    if not checked and not (isinstance(names, list | tuple | set) and not names):
        raise TypeError(f"{argument}={shown(names)} must be the name of a parameter, or several.")
    return checked


def call_with_covariates(function: Any, arguments: tuple[Any, ...], z: tuple[Any, ...]) -> Any:
    """`function(*arguments, *z)`, where z may be covariates: a family's functions take none, and get none."""
    return function(*arguments, *(z if z and takes(function, len(arguments) + 1) else ()))


def takes(function: UserFunction, count: int) -> bool:
    """Whether a function can be called with so many arguments by position."""
    if not getattr(function, "takes_covariates", True):  # it would raise, since it has no use for them
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # built-in functions have no signature
        return True
    return True
