"""What is recorded about a sink on disk: how it was made, and a marker for each block that is complete.

A file is written under another name and then renamed, so that it is there whole or not at all. A marker is written after
the block that it stands for has reached the disk, so that a process killed at any moment leaves each block whole or unmarked.

Several processes may each do a part of the blocks. The sink, its manifest and the metadata of its arrays are made in a
folder beside it, which is then renamed: that fails for all but the first, whose manifest the others compare with theirs. From
then on no two parts write to the same file, but for `complete.json`, whose content is always the same.
"""

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
        """Raise where the place of the sink holds something else; empty folders do not matter."""
        if self.manifest is not None:
            return
        files = self.path.rglob("*") if self.path.is_dir() else iter([self.path] if self.path.exists() else [])
        # Another part may have made the sink since, all at once: then its manifest is there.
        if any(file.is_file() for file in files) and self.manifest is None:
            raise ValueError(
                f"{self.path} exists, but is no sink that fit_stream wrote{' in this format' * self.path.is_dir()}"
                f"{', so overwrite=True will not remove it' * overwrite}. Give another path, or remove it yourself."
            )

    def check_settings(self, manifest: dict[str, Any]) -> None:
        """Raise where the sink was begun with other settings."""
        if self.manifest is None:
            return
        if lines := differences(self.manifest["settings"], manifest["settings"]):
            more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise ValueError(
                f"{self.path} was begun otherwise: {'; '.join(lines[:8])}{more}. Call it as before to go on, give "
                "another sink, or overwrite=True to start anew."
            )

    def begin(self, manifest: dict[str, Any], lay_out: Callable[[Path], None], writer: str, *, overwrite: bool) -> None:
        """Make the sink with what `lay_out` writes into a folder, unless it is there; raise if others made it otherwise."""
        if overwrite:
            # Removed under another name, so that a part of the old sink is never taken for one of the new.
            discarded = self.path.with_name(f".{self.path.name}.discarded")
            shutil.rmtree(discarded, ignore_errors=True)
            if self.path.exists():
                self.path.replace(discarded)
                shutil.rmtree(discarded)
        if self.manifest is None:
            with private_folder(self.path, writer) as folder:
                made = folder / self.path.name
                made.mkdir()
                lay_out(made)
                (made / self.folder.relative_to(self.path)).mkdir(parents=True, exist_ok=True)
                write_durably(made / self.folder.relative_to(self.path) / "manifest.json", manifest)
                reach_disk([made, *made.rglob("*")])
                try:
                    made.replace(self.path)
                except OSError:
                    if self.manifest is None:  # no other part was the first: there are empty folders, if nothing worse
                        for empty in sorted(self.path.rglob("*"), reverse=True):
                            empty.rmdir()
                        made.replace(self.path)
            reach_disk([self.path.parent])
        self.check_settings(manifest)

    def remove_partial(self, blocks: range | None, writer: str) -> None:
        """Remove what an earlier run of the same writer was writing when it ended: of these blocks, or `None` for everything."""
        for partial in self.path.rglob(f"*{PARTIAL}"):
            number = _BLOCK.search(partial.relative_to(self.path.parent).as_posix())
            mine = partial.name == f"complete.json.{writer}{PARTIAL}"
            if blocks is None or mine or (number and int(number[1]) in blocks):
                partial.unlink(missing_ok=True)
        if blocks is None:  # no part is running, and what is beside the sink was left by killed ones
            for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.part-*"):
                if left.suffix == PARTIAL:
                    shutil.rmtree(left, ignore_errors=True)
                elif left.suffix == ".lock":
                    left.unlink(missing_ok=True)

    def mark(self, number: int, statuses: Counter[str]) -> None:
        write_durably(self._marker(number), statuses)

    def marked(self) -> set[int]:
        """The numbers of the blocks that are done."""
        files = self.folder.iterdir() if self.folder.exists() else ()
        return {int(match[1]) for file in files if (match := _MARKER.fullmatch(file.name))}

    def statuses(self, blocks: Iterable[int]) -> Counter[str]:
        """Counts of the fits in blocks that are done."""
        counts = Counter[str]()
        for number in blocks:
            counts.update(json.loads(self._marker(number).read_text(encoding="utf-8")))
        return counts

    def close(self, writer: str) -> None:
        """Record that there are no further blocks."""
        write_durably(self.folder / "complete.json", {}, writer)

    @property
    def complete(self) -> bool:
        return (self.folder / "complete.json").exists()

    def unfinished(self, manifest: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """The numbers of the parts that have blocks to do, and the number of fits that are done in all.

        Of a sink whose length is unknown, which one call writes, part 0 is unfinished until it is complete.
        """
        marked, length = self.marked(), manifest["number of data sets"]
        size, parts = manifest["settings"]["block"], manifest["settings"]["parts"]
        if length is None:
            return () if self.complete else (0,), self.statuses(marked).total()
        unfinished = tuple(k for k in range(parts) if not marked.issuperset(part_of(k, parts, length, size)))
        return unfinished, sum(min(size, length - number * size) for number in marked)

    def _marker(self, number: int) -> Path:
        return self.folder / f"block-{number:08d}.json"


_MARKER = re.compile(r"block-(\d+)\.json")
# The number of a block in the name of a file that belongs to it: a chunk of a Zarr array, a Parquet file, a marker.
_BLOCK = re.compile(r"/(?:c/|\.part-|block-)(\d+)")


def part_of(k: int, parts: int, length: int, size: int) -> range:
    """The numbers of the blocks in part k: contiguous shares, as equal as whole blocks can be."""
    blocks = -(-length // size)
    return range(k * blocks // parts, (k + 1) * blocks // parts)


def manifest_of(
    model: Model, sources: Fingerprint, settings: dict[str, Any], size: int, parts: int, length: int | None
) -> dict[str, Any]:
    """All that the results depend on, as plain values."""
    table: Fingerprint = {
        "fisher_jax": __version__,
        "jax": jax.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "x64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
        "block": size,
        "parts": parts,
        "model": type(model).__name__,
    }
    for name in ("log_density", "constraints", "initial", "information"):
        table |= fingerprint(getattr(model, name), name)
    for name, value in settings.items():
        table |= fingerprint(value, name)
    table |= sources
    return {"format": 2, "settings": table, "number of data sets": length, "not fingerprinted": unknown(table)}


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
def sole_writer(path: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Lock the place of a sink, or a part of it, against other threads and processes; raise where another has locked it.

    Locks are the operating system's, on files beside the sink: however a process ends, its locks end with it. A part has a lock of
    its own, and shares that of the whole sink with the other parts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(path, None, shared=part is not None))
        if part is not None:
            stack.enter_context(_locked(path, part, shared=False))
        yield


@contextlib.contextmanager
def _locked(path: Path, part: tuple[int, int] | None, *, shared: bool) -> Iterator[None]:
    beside = path.with_name(f".{path.name}.lock" if part is None else f".{path.name}.{writer_of(part)}.lock")
    try:
        file = _open_alone(beside, shared=shared)
    except (BlockingIOError, FileExistsError) as error:
        holder, what, wait = _text(beside), f"{path}", "it has ended, or give another sink"
        if part is not None:
            what, wait = f"part {part[0]} of {part[1]} of {path}", "it has ended: it does this part"
        elif not shared and not holder:  # those who share the lock write nothing into it
            files = sorted(path.parent.glob(f".{glob.escape(path.name)}.part-*.lock"))
            holder = "; ".join(f"{file.suffixes[-2][1:].replace('-', ' ')}: {_text(file)}" for file in files)
            what, wait = f"parts of {path}", "these have ended; what they leave undone is done then"
        raise RuntimeError(
            f"another call of fit_stream is writing to {what} ({holder or 'its process is unknown'}). Wait until {wait}."
        ) from error
    try:
        os.ftruncate(file, 0)
        if not shared:
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # others share it still: the last of them removes it
                if shared:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                beside.unlink()
        os.close(file)


def writer_of(part: tuple[int, int] | None) -> str:
    """The name of a writer, for files that it alone writes."""
    return "whole" if part is None else f"part-{part[0]}"


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):  # it has just ended
        return path.read_text(encoding="utf-8")
    return ""


if sys.platform == "win32":

    def _open_alone(path: Path, *, shared: bool) -> int:
        """Make a file that is not there yet; Windows removes it when it is closed or its process ends."""
        if shared:
            raise OSError(
                "part=… needs locks that processes share, which fit_stream does not have on Windows. Leave part out, or run "
                "it on Linux (in WSL)."
            )
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)

else:

    def _open_alone(path: Path, *, shared: bool) -> int:
        """Open a file that nobody else has locked, and lock it; a lock that is `shared` may be had by several."""
        tries = 20
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                tries -= 1
                if not (shared and tries) or _text(path):
                    raise
                time.sleep(0.05)  # a part that ends has the lock alone for a moment, to remove the file
                continue
            except OSError as error:
                without = f"the file system of {path.parent} keeps no locks ({error.strerror})"
                if shared:  # a part
                    os.close(file)
                    path.unlink()
                    raise OSError(
                        error.errno,
                        f"{without}, which part=… needs so that no part is written twice at once. Give a sink on a file "
                        "system with locks (Lustre: mounted with flock; NFS: with its lock service), or each process a "
                        "sink of its own",
                    ) from error
                warn(f"{without}. See to it that no other call of fit_stream writes to the same sink.", UserWarning)
            # The process that had it before may have removed the file after it was opened here, and another may have made a
            # new one: then the lock is on no file that others can see.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
            os.close(file)


@contextlib.contextmanager
def private_folder(path: Path, writer: str) -> Iterator[Path]:
    """A folder beside the sink, of one writer only, which is gone afterwards; one that a killed run left is emptied."""
    folder = path.with_name(f".{path.name}.{writer}{PARTIAL}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_file_system(path: Path, writer: str) -> None:
    """Raise an `OSError` where files cannot be renamed or made as `fit_stream` needs it, found out in a folder beside the sink."""

    def fail(what: str, error: OSError | None = None) -> OSError:
        return OSError(
            error.errno if error else errno.ENOTSUP,
            f"the file system of {path.parent} {what}{f' ({error.strerror})' if error else ''}, so that results could be "
            "lost or damaged. fit_stream needs a local disk, or a shared file system (NFS, Lustre, GPFS, CephFS), not an object "
            "store that is mounted as a folder. Write there, and copy the sink when it is complete",
        )

    with private_folder(path, writer) as folder:
        one, two = folder / "one", folder / "two"
        for each in (one, two):
            each.mkdir()
            (each / "file").write_text(each.name)
        try:
            (one / "file").replace(folder / "file")
            (two / "file").replace(folder / "file")
            (one / "file").write_text(one.name)
            (one / "file").replace(two / "file")
        except OSError as error:
            raise fail("does not rename files", error) from error
        if (folder / "file").read_text() != "two" or (two / "file").read_text() != "one" or any(one.iterdir()):
            raise fail("does not rename files as a whole")
        (one / "file").write_text(one.name)
        try:
            one.replace(two)
        except OSError:
            pass
        else:
            raise fail("renames a folder to the name of another that is not empty")
        try:
            one.replace(folder / "three")
        except OSError as error:
            raise fail("does not rename folders", error) from error
        if (folder / "three" / "file").read_text() != "one" or (two / "file").read_text() != "one" or one.exists():
            raise fail("does not rename folders as a whole")
        if sys.platform != "win32":
            with (two / "file").open("r+") as first, (two / "file").open("r+") as second:
                try:
                    fcntl.flock(first, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # as it should be; or there are no locks at all, of which the lock of the sink warned
                    return
                raise fail("gives one lock to two")


def write_durably(path: Path, value: Any, writer: str = "") -> None:
    """A file of JSON that is there whole or not at all, after a crash of the machine too."""
    partial = path.with_name(f"{path.name}{writer and f'.{writer}'}{PARTIAL}")
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
