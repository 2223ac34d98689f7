"""The record of profile likelihoods: their curves, their intervals, and what each end is."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import entry_point, require
from fisher_jax.fitting.result import Fit
from fisher_jax.profile.path import End
from fisher_jax.profile.sides import cut_of
from fisher_jax.reporting import Report, Reported, Table, number


@dataclass(frozen=True, repr=False)
class Profile(Reported):
    """Profile likelihoods of parameters or of functions of them, with the intervals that they give.

    Attributes
    ----------
    estimate, standard_error : arrays (m,)
        At the maximum; the standard error is Wald's, from the observed information, in the same unit.
    lower, upper : arrays (m,)
        Ends of the interval {c : ℓ̂ − ℓ_p(c) ≤ ½ χ²₁(level)}. Where the profile never falls so far, the edge of the parameter's
        range or ±inf; NaN where it could not be told. `lower_end` and `upper_end` say in words which.
    end_codes : integer array (m, 2)
        The same as codes.
    value, signed_root : arrays (m, k)
        The curve: c in increasing order, and r = sign(c − ĉ) √(2(ℓ̂ − ℓ_p(c))), which is a straight line for a quadratic
        likelihood; NaN in unused places at the end.
    free : array (m, k, p)
        The unconstrained parameters along the curve; `params` gives the parameters themselves.
    reached, fallen : arrays (m, 2)
        Where each side was left, and by how many nats the profile had fallen there.
    names : tuple of str
    level : float
        The coverage aimed at.
    fit : Fit
        The fit that was profiled: the one given, or one restarted from a better point that was found on the way.
    num_restarts : int
        How often that happened.
    notes : tuple of str
        What a reader must know of it.
    """

    estimate: Any
    standard_error: Any
    lower: Any
    upper: Any
    end_codes: Any
    value: Any
    signed_root: Any
    free: Any
    reached: Any
    fallen: Any
    fit: Fit
    names: tuple[str, ...]
    level: float
    num_restarts: int
    notes: tuple[str, ...]

    @property
    def lower_end(self) -> tuple[str, ...]:
        """How each lower end was come by, in words."""
        return tuple(End(int(code)).words for code in self.end_codes[:, 0])

    @property
    def upper_end(self) -> tuple[str, ...]:
        """How each upper end was come by, in words."""
        return tuple(End(int(code)).words for code in self.end_codes[:, 1])

    @property
    def interval(self) -> Float[np.ndarray, "m 2"]:
        """Lower and upper ends."""
        return np.stack([self.lower, self.upper], axis=-1)

    @property
    def log_likelihood(self) -> Float[np.ndarray, "m k"]:
        """ℓ_p along the curve less its maximum, in nats."""
        return -0.5 * self.signed_root**2

    @property
    def skewness(self) -> Float[np.ndarray, "m 2"]:
        """Each half of the interval over Wald's, z standard errors: 1 where the likelihood is quadratic."""
        wald = np.sqrt(2 * cut_of(self.level)) * self.standard_error
        return np.stack([self.estimate - self.lower, self.upper - self.estimate], axis=-1) / wald[:, None]

    @property
    def params(self) -> PyTree:
        """The parameters along the curve: a pytree like the fit's, each leaf with axes (m, k) in front."""
        layout, values = self.fit.layout, self.fit.values
        return jax.vmap(jax.vmap(lambda free: layout.constrain(free, values)))(jnp.asarray(self.free))

    @entry_point
    def to_frame(self) -> Any:
        """The table as a pandas DataFrame by name (needs the extra `frames`)."""
        pd = require("pandas", "frames")
        columns = {
            "estimate": self.estimate,
            "lower": self.lower,
            "upper": self.upper,
            "lower_over_wald": self.skewness[:, 0],
            "upper_over_wald": self.skewness[:, 1],
            "lower_end": self.lower_end,
            "upper_end": self.upper_end,
        }
        return pd.DataFrame(columns, index=pd.Index(self.names, name="name"))

    def summary(self) -> Report:
        percent = f"{100 * self.level:g} %"
        titles = ("parameter", "estimate", f"lower {percent}", f"upper {percent}", "lower / Wald", "upper / Wald")
        numbers = np.column_stack([self.estimate, self.lower, self.upper, self.skewness])
        rows = [(name, *map(number, row)) for name, row in zip(self.names, numbers, strict=True)]
        facts = [("Cut-off", f"{cut_of(self.level):.4f} nats below the maximum, ½ χ² with one degree of freedom")]
        return Report("Profile likelihood", facts, [Table(titles, rows)], list(self.notes))


_STATIC = ("names", "level", "num_restarts", "notes")
jax.tree_util.register_dataclass(Profile, [f.name for f in fields(Profile) if f.name not in _STATIC], list(_STATIC))
