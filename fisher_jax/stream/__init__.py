"""Fits from disk to disk, in bounded memory; after an interruption they go on where they stopped."""

from fisher_jax.stream.pipeline import StreamResult, fit_stream
from fisher_jax.stream.source import Parquet, parquet

__all__ = ["Parquet", "StreamResult", "fit_stream", "parquet"]
