"""Optional dependencies, imported where they are used, with word of how to get them."""

import importlib
from types import ModuleType


def require(module: str, extra: str, caller: str) -> ModuleType:
    """Import an optional module, or say which extra of fisher_jax brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{caller} needs {module}: pip install "fisher_jax[{extra}]".') from error
