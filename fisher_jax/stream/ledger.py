"""What is recorded about a sink on disk: how it was made, and a marker for each block that is complete.

A file is written under another name and then renamed, so that it is there whole or not at all. A marker is written after
the block that it stands for has reached the disk, so that a process killed at any moment leaves each block whole or unmarked.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fisher_jax._version import __version__
from fisher_jax.errors import warn
from fisher_jax.models.fingerprint import Fingerprint, fingerprint, unknown
from fisher_jax.models.model import Model

if sys.platform != "win32":
    import fcntl
PARTIAL = ".partial"  # the ending of a file that is not yet whole; Zarr uses the same


@dataclass(frozen=True)
class Ledger:
    """The record of the sink at `path`: `manifest.json`, and a marker for each finished block with its fits by status."""

    path: Path
    folder: Path

    @property
    def manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def check_place(self, *, overwrite: bool) -> None:
        """Raise where the place of the sink holds something else; folders and partial files are what a killed run may leave."""
        files = self.path.rglob("*") if self.path.is_dir() else iter([self.path] if self.path.exists() else [])
        if self.manifest is None and any(file.is_file() and file.suffix != PARTIAL for file in files):
            raise ValueError(
                f"{self.path} exists, but is no sink that fit_stream wrote{' in this format' * self.path.is_dir()}"
                f"{', so overwrite=True will not remove it' * overwrite}. Give another path, or remove it yourself."
            )

    def finished(self, manifest: dict[str, Any]) -> list[Counter[str]]:
        """Counts of the blocks that an earlier run has finished, as far as none is missing; raise where its settings differ."""
        if self.manifest is None:
            return []
        if lines := differences(self.manifest["settings"], manifest["settings"]):
            more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise ValueError(
                f"{self.path} was begun otherwise: {'; '.join(lines[:8])}{more}. Call it as before to go on, give "
                "another sink, or overwrite=True to start anew."
            )
        counts: list[Counter[str]] = []
        while (path := self._marker(len(counts))).exists():
            counts.append(Counter(json.loads(path.read_text(encoding="utf-8"))))
        return counts

    def begin(self, manifest: dict[str, Any], *, overwrite: bool) -> None:
        """Make the sink ready for the first block that this run writes."""
        if overwrite:
            # Removed under another name, so that a part of the old sink is never taken for one of the new.
            discarded = self.path.with_name(f".{self.path.name}.discarded")
            shutil.rmtree(discarded, ignore_errors=True)
            if self.path.exists():
                self.path.replace(discarded)
                shutil.rmtree(discarded)
        if self.manifest is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(self.folder / "manifest.json", manifest)
        for partial in self.path.rglob(f"*{PARTIAL}"):
            partial.unlink()

    def mark(self, number: int, statuses: Counter[str]) -> None:
        write_durably(self._marker(number), statuses)

    def close(self) -> None:
        """Record that there are no further blocks."""
        write_durably(self.folder / "complete.json", {})

    @property
    def complete(self) -> bool:
        return (self.folder / "complete.json").exists()

    def _marker(self, number: int) -> Path:
        return self.folder / f"block-{number:08d}.json"


def manifest_of(model: Model, sources: Fingerprint, settings: dict[str, Any], size: int) -> dict[str, Any]:
    """All that the results depend on, as plain values."""
    table: Fingerprint = {
        "fisher_jax": __version__,
        "jax": jax.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "x64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
        "block": size,
        "model": type(model).__name__,
    }
    for name in ("log_density", "constraints", "initial", "information"):
        table |= fingerprint(getattr(model, name), name)
    for name, value in settings.items():
        table |= fingerprint(value, name)
    table |= sources
    return {"format": 1, "settings": table, "not fingerprinted": unknown(table)}


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two tables of settings, a line each; parts of what is new or gone as a whole are not listed."""
    # Compared as JSON, in which 1 is neither 1.0 nor true.
    changed = [name for name in was if name in now and json.dumps(was[name]) != json.dumps(now[name])]
    whole = tuple(name.removesuffix(" code") + end for name in changed for end in " .[")
    lines = []
    for name in (*changed, *(name for name in sorted(was.keys() ^ now.keys()) if not name.startswith(whole))):
        if name not in was:
            lines.append(f"{name} is new: {now[name]}")
        elif name not in now:
            lines.append(f"{name} was {was[name]}, is gone")
        elif name.endswith(" code"):
            lines.append(f"the code of {name.removesuffix(' code')} has changed")
        else:
            lines.append(f"{name} was {was[name]}, is {now[name]}")
    return lines


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Lock the place of a sink against other threads and processes; raise where another has locked it.

    The lock is the operating system's, on a file beside the sink: however a process ends, its lock ends with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.lock")
    try:
        file = _open_alone(beside)
    except (BlockingIOError, FileExistsError) as error:
        holder = ""
        with contextlib.suppress(OSError):  # it has just ended
            holder = beside.read_text(encoding="utf-8")
        raise RuntimeError(
            f"another call of fit_stream is writing to {path} ({holder or 'its process is unknown'}). Wait until it "
            "has ended, or give another sink."
        ) from error
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if sys.platform != "win32":
            beside.unlink()
        os.close(file)


if sys.platform == "win32":

    def _open_alone(path: Path) -> int:
        """Make a file that is not there yet; Windows removes it when it is closed or its process ends."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)

else:

    def _open_alone(path: Path) -> int:
        """Open a file that nobody else has locked, and lock it."""
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise
            except OSError as error:
                warn(
                    f"the file system of {path.parent} keeps no locks ({error.strerror}). See to it that no other "
                    "call of fit_stream writes to the same sink.",
                    UserWarning,
                )
            # The process that had it before may have removed the file after it was opened here, and another may have made a
            # new one: then the lock is on no file that others can see.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
            os.close(file)


def write_durably(path: Path, value: Any) -> None:
    """A file of JSON that is there whole or not at all, after a crash of the machine too."""
    partial = path.with_name(path.name + PARTIAL)
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    partial.write_text(text, encoding="utf-8", newline="\n")
    reach_disk([partial])
    partial.replace(path)
    reach_disk([path.parent])


def reach_disk(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        if path.is_dir() and os.name == "nt":  # Windows cannot synchronise a folder
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
