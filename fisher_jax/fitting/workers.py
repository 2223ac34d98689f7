"""Chunks of data sets in the hands of several workers: a thread for each core that the process may use."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import jax


def num_cores() -> int:
    """The cores that this process may use: its affinity where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(work: Callable[[Any], Any], pieces: Sequence[Any], num_workers: int) -> None:
    """`work(piece)` for every piece, by at most so many threads; what one raises stops the others and is raised here.

    A piece that is under way when another fails, or when the user interrupts, is finished first: XLA cannot be interrupted.
    """
    if num_workers == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
        return
    stop, x64 = threading.Event(), bool(jax.config.read("jax_enable_x64"))

    def guarded(piece: Any) -> None:
        if not stop.is_set():
            with jax.enable_x64(x64):  # what the caller's thread was told, perhaps for a while only
                work(piece)

    with ThreadPoolExecutor(min(num_workers, len(pieces)), thread_name_prefix="fisher_jax") as pool:
        futures = [pool.submit(guarded, piece) for piece in pieces]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()  # reached with work left only when something was raised
