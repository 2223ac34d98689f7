"""What is known of a sink on disk: how it was made, and a marker for each block that is complete.

A file comes to be under another name and is then renamed, so that it is there whole or not at all; a marker is written after
all that it speaks of has reached the disk.
"""

import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fisher_jax.errors import warn

if sys.platform != "win32":
    import fcntl
PARTIAL = ".partial"  # the ending of a file not yet whole; Zarr uses the same
_SHOWN = 8  # differences named in one message


@dataclass(frozen=True)
class Ledger:
    """A folder with `manifest.json` and a marker for each finished block, which counts its fits by status."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def begin(self, manifest: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_durably(self.folder / "manifest.json", as_json(manifest))

    def mark(self, number: int, statuses: dict[str, int]) -> None:
        write_durably(self._marker(number), as_json(statuses))

    def finished(self) -> list[dict[str, int]]:
        """The counts of the blocks finished, in order, as far as none is missing."""
        found: list[dict[str, int]] = []
        while (path := self._marker(len(found))).exists():
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    def close(self) -> None:
        """Say that no block is to come."""
        write_durably(self.folder / "complete.json", b"{}\n")

    @property
    def complete(self) -> bool:
        return (self.folder / "complete.json").exists()

    def _marker(self, number: int) -> Path:
        return self.folder / f"block-{number:08d}.json"


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the place of a sink against other threads and processes; raise where another has it.

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
            # Whoever had it before may have removed the file after it was opened here: then the lock is on none.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
            os.close(file)


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_durably(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, after a crash of the machine too."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    reach_disk([path.parent])


def reach_disk(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        if path.is_dir() and os.name == "nt":  # which has no such thing for a folder
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two tables of settings, a line each; parts of what is new or gone as a whole are not listed."""
    changed = [name for name in was if name in now and not _same(name, was, now)]
    whole = tuple(name.removesuffix(" code") + end for name in changed for end in " .[")
    others = [name for name in sorted(was.keys() ^ now.keys()) if not name.startswith(whole)]
    return [_difference(name, was, now) for name in (*changed, *others)]


def _same(name: str, was: dict[str, Any], now: dict[str, Any]) -> bool:
    """As JSON writes them, so that 1 is neither 1.0 nor true."""
    return json.dumps(was[name]) == json.dumps(now[name])


def _difference(name: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    if name not in was:
        return f"{name} is new: {now[name]}"
    if name not in now:
        return f"{name} was {was[name]}, is gone"
    if name.endswith(" code"):
        return f"the code of {name.removesuffix(' code')} has changed"
    return f"{name} was {was[name]}, is {now[name]}"


def check_same(was: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse to go on with other settings than those that it was begun with."""
    found = differences(was["settings"], now["settings"])
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            f"{path} was begun otherwise: {'; '.join(found[:_SHOWN])}{more}. Call it as before to go on, give "
            "another sink, or overwrite=True to start anew."
        )


def discard(path: Path) -> None:
    """Remove a sink, first under another name, so that half of one is never found in its place."""
    discarded = path.with_name(f".{path.name}.discarded")
    shutil.rmtree(discarded, ignore_errors=True)
    if path.exists():
        path.replace(discarded)
        shutil.rmtree(discarded)


def is_blank(path: Path) -> bool:
    """Whether there is nothing in it but folders and files not yet whole."""
    return path.is_dir() and not any(entry.is_file() and entry.suffix != PARTIAL for entry in path.rglob("*"))


def remove_partial(path: Path) -> None:
    """Remove what was not yet whole when a run was interrupted."""
    for entry in path.rglob(f"*{PARTIAL}"):
        entry.unlink()
