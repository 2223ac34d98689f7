"""Fits from disk to disk, in bounded memory; after an interruption they go on where they stopped."""

from fisher_jax.stream.pipeline import StreamResult, fit_stream

__all__ = ["StreamResult", "fit_stream"]
