"""One setting for all tests: float64, shapes and types checked at run time, no silent rank promotion."""

import jax
import jaxtyping

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

with jaxtyping.install_import_hook("fisher_jax", "beartype.beartype"):
    import fisher_jax  # noqa: F401
