"""Several workers: a thread for each core that the process may use, or some threads for each device."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from fisher_jax.errors import calls_under_way, check_count, shown

Devices = tuple[Any, ...]  # that of each worker, None for JAX's default one
# Chunks for each device that is no CPU: on the way to it, in it, on the way back, and copied by the host.
OVERLAPPING = 8


def num_cores() -> int:
    """The cores that this process may use: its affinity where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_dask_worker() -> int | None:
    """How many tasks the worker of Dask runs at once whose task this is; None outside such tasks."""
    module = sys.modules.get("distributed.worker")
    try:
        return None if module is None else int(module.get_worker().state.nthreads)
    except ValueError:
        return None


def num_threads() -> int:
    """The threads that a call starts by default: one for each core, but in a task of Dask one, since its worker counts tasks."""
    return num_cores() if threads_of_dask_worker() is None else 1


def default_device() -> Any:
    """The device that JAX computes on by default."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    return chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]


def platform() -> str:
    """What that device is: "cpu", "gpu", "tpu"."""
    name = str(default_device().platform)
    return "gpu" if name in ("cuda", "rocm") else name


def devices_of(devices: Any) -> Devices:
    """The device of each worker: as requested; None means every device."""
    default, is_chosen = default_device(), jax.config.jax_default_device is not None  # type: ignore[attr-defined]
    on_cpu, others = default.platform == "cpu", jax.local_devices(backend=default.platform)
    if devices is None:
        devices = num_threads() if on_cpu else [default] if is_chosen else others
    if isinstance(devices, int | np.integer) and not isinstance(devices, bool) and devices >= 1:
        if on_cpu:
            return (None,) * check_count(devices, 1, "devices")
        devices = others[:devices] if devices <= len(others) else devices
    listed = isinstance(devices, list | tuple) and len(devices) > 0
    if listed and all(getattr(device, "platform", None) == default.platform for device in devices):
        return (None,) * len(devices) if on_cpu else tuple(devices) * OVERLAPPING
    most = "threads, at least 1, or a list of CPU devices. On another device choose it by jax.default_device"
    if not on_cpu:
        most = f"devices, from 1 to {len(others)}, or a list of {platform()} devices"
    raise TypeError(f"devices={shown(devices)} must be a number of {most}.")


def run(work: Callable[[Any], Any], pieces: Sequence[Any], num_workers: int) -> None:
    """`work(piece)` for every piece, by at most so many threads; what one raises stops the others and is raised here.

    A piece that is under way when another fails, or when the user interrupts, is finished first: XLA cannot be interrupted.
    """
    if num_workers == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
        return
    # Settings of the caller's thread, which JAX may hold for that thread alone.
    names = list(calls_under_way())
    stop, x64, device = threading.Event(), bool(jax.config.read("jax_enable_x64")), jax.config.jax_default_device  # type: ignore[attr-defined]

    def guarded(piece: Any) -> None:
        if not stop.is_set():
            calls_under_way()[:] = names  # errors and warnings are named after the function that the user called
            with jax.enable_x64(x64), jax.default_device(device):
                work(piece)

    with ThreadPoolExecutor(min(num_workers, len(pieces)), thread_name_prefix="fisher_jax") as pool:
        futures = [pool.submit(guarded, piece) for piece in pieces]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()  # reached with work left only when something was raised


def side_by_side(*works: Callable[[], Any]) -> list[Any]:
    """What each returns. One compiles, or runs on one core, while another computes."""
    results: list[Any] = [None] * len(works)

    def work(number: int) -> None:
        results[number] = works[number]()

    run(work, range(len(works)), len(works))
    return results
