"""Fits from disk to disk, in bounded memory; what is interrupted goes on where it stopped."""

from fisher_jax.stream.result import StreamResult
from fisher_jax.stream.run import fit_stream
from fisher_jax.stream.tables import Parquet, parquet

__all__ = ["Parquet", "StreamResult", "fit_stream", "parquet"]
