"""Run folders: one folder a run, addressed by content, sealed last (DESIGN sections 4.8 and 5).

    runs/booster-7f3a9c21e0/
      spec.json       resolved spec and key, then provenance (which is not part of the key)
      events.jsonl    progress, warnings, seconds, peak memory
      samples.jsonl   answers          ratings/     one file per rater
      artifacts/      what was learned checkpoint/  present only until the run is sealed
      SEALED          hashes of what was made, written last

A run is done when SEALED is there and what it lists is still there unchanged. Everything else is
work in progress, which the same command picks up.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from holdfast.core.errors import RunError, nearest
from holdfast.core.events import Event, Progressed, Sink, Warned, ignore
from holdfast.core.files import RowFile, read_json, write_json, writing
from holdfast.core.keys import canonical, file_digest, key_of

FORMAT = 1
_VERSIONED = ("holdfast", "torch", "transformers", "peft", "accelerate", "numpy", "polars")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One line of ``runs list``."""

    name: str
    key: str
    kind: str
    label: str
    created: float
    sealed: bool


class Run:
    """One run folder. Made by :meth:`Store.run`; opened by :meth:`Store.find`."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.key: str = header["key"]
        self.kind: str = header["kind"]
        self.label: str = header["label"]
        self.spec: dict[str, Any] = header["spec"]
        self.provenance: dict[str, Any] = header.get("provenance", {})

    @property
    def name(self) -> str:
        """Folder name: label and key."""
        return self.path.name

    @property
    def artifacts(self) -> Path:
        """Folder of what the run learned."""
        return self.path / "artifacts"

    def seal_record(self) -> dict[str, Any] | None:
        """Contents of SEALED, or None when the run is unfinished or its seal is unreadable."""
        try:
            record = read_json(self.path / "SEALED")
        except (OSError, RunError):
            return None
        whole = isinstance(record, dict) and record.get("key") == self.key and isinstance(record.get("files"), dict)
        return record if whole else None

    def damage(self) -> str | None:
        """What is wrong with a sealed run: the first listed file that is gone or changed; None if none.

        A file whose size and time are as sealed is taken as unchanged; any other is hashed again.
        """
        record = self.seal_record()
        if record is None:
            return "it is not sealed"
        for relative, sealed in record["files"].items():
            path = self.path / relative
            if not path.is_file():
                return f"{relative} is missing"
            stat = path.stat()
            if stat.st_size != sealed["bytes"]:
                return f"{relative} changed its size"
            if stat.st_mtime_ns != sealed["mtime_ns"] and file_digest(path) != sealed["sha256"]:
                return f"{relative} changed its content"
        return None

    @property
    def sealed(self) -> bool:
        """Whether the run is finished and undamaged."""
        return self.damage() is None

    def seal(self, seconds: float, **summary: Any) -> None:
        """Hash all that was made and write SEALED; from now on the run is a result.

        Args:
            seconds: time the run took, over all its sittings.
            summary: small numbers worth showing without opening the run.
        """
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)
        files = {p.relative_to(self.path).as_posix(): _file_record(p) for p in self._sealable()}
        write_json(
            self.path / "SEALED",
            {"format": FORMAT, "key": self.key, "seconds": round(seconds, 3), "summary": summary, "files": files},
        )

    def _sealable(self) -> Iterator[Path]:
        yield self.path / "spec.json"
        if (self.path / "samples.jsonl").exists():
            yield self.path / "samples.jsonl"
        for path in sorted(self.artifacts.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path

    def reset(self) -> None:
        """Remove everything but the spec and the log of events, so that a damaged run can be made again."""
        for path in self.path.iterdir():
            if path.name in ("spec.json", "events.jsonl", ".lock"):
                continue
            with writing(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def working(self, sink: Sink = ignore) -> Iterator[Sink]:
        """Hold the folder for writing; yields a sink that records events in the folder and passes them on.

        A second process that wants the same run waits for the first; the lock dies with its process.

        Raises:
            RunError: the folder cannot be written.
        """
        with writing(self.path / ".lock"):
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                sink(Warned(run=self.name, message=f"{self.name} is being made by another process; waiting for it"))
                lock.acquire()
        try:
            self._sweep()
            with RowFile(self.path / "events.jsonl") as rows:
                yield _Recorder(rows, sink, self.name)
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove the temporary files of writers that were killed: whoever holds the lock is the only writer.

        The spec is written before the lock is taken, so a temporary one may be somebody's at work.
        """
        for path in sorted(self.path.rglob(".*"), reverse=True):
            if path.name == ".lock" or path.name.startswith(".spec.json."):
                continue
            with writing(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class _Recorder:
    """Writes events to the run's file (progress at most once a second) and hands all of them on."""

    def __init__(self, rows: RowFile, sink: Sink, run: str) -> None:
        self._rows, self._sink, self._run, self._last = rows, sink, run, 0.0

    def __call__(self, event: Event) -> None:
        event = event if event.run else replace(event, run=self._run)
        self._sink(event)
        if isinstance(event, Progressed):
            if event.done < event.total and event.time - self._last < 1.0:
                return
            self._last = event.time
        self._rows.append([event.as_json()])


class Store:
    """A folder of runs, with an SQLite index that is only a cache of the folders.

    Args:
        root: the folder; made when the first run is.
    """

    def __init__(self, root: Path | str = "runs") -> None:
        self.root = Path(root)

    def run(self, kind: str, label: str, spec: Mapping[str, Any]) -> Run:
        """The run of this spec: the folder is made if it is not there yet.

        Raises:
            RunError: the folder cannot be written, or holds another spec under the same key.
        """
        key = key_of({"kind": kind, "spec": spec})
        path = self.root / f"{label}-{key}"
        header = {"format": FORMAT, "key": key, "kind": kind, "label": label, "spec": dict(spec)}
        existing = _read_header(path)
        if existing is None:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            write_json(path / "spec.json", header | {"provenance": provenance()})
        elif canonical(existing["spec"]) != canonical(spec):
            raise RunError(f"{path / 'spec.json'} was edited", hint=f"delete {path} and run again")
        return Run(path, existing or header)

    def run_exists(self, kind: str, label: str, spec: Mapping[str, Any]) -> bool:
        """Whether the run of this spec is finished; makes nothing."""
        path = self.root / f"{label}-{key_of({'kind': kind, 'spec': spec})}"
        header = _read_header(path)
        return header is not None and Run(path, header).seal_record() is not None

    def find(self, reference: str) -> Run:
        """The run with this name, key, unique beginning of a key, or folder.

        Raises:
            RunError: none, or several, match.
        """
        folder = Path(reference)
        if (folder / "spec.json").is_file():
            return open_run(folder)
        names = [info.name for info in self.list()]
        matches = [n for n in names if reference in (n, n.rpartition("-")[2])] or [
            n for n in names if n.rpartition("-")[2].startswith(reference) or n.startswith(reference)
        ]
        if len(matches) == 1:
            return open_run(self.root / matches[0])
        if matches:
            raise RunError(f"{reference!r} matches {len(matches)} runs", hint=f"give one of: {', '.join(matches[:6])}")
        raise RunError(
            f"no run {reference!r} in {self.root}", hint=f"{nearest(reference, names)}see 'holdfast runs list'"
        )

    def list(self) -> list[RunInfo]:
        """All runs, newest first. Reads the index, and only those folders that changed since."""
        if not self.root.is_dir():
            return []
        stamps = {entry.name: _stamp(Path(entry.path)) for entry in os.scandir(self.root) if entry.is_dir()}
        stamps = {name: stamp for name, stamp in stamps.items() if stamp}
        known = _read_index(self.root)
        fresh = {n: (s, _index_line(self.root / n)) for n, s in stamps.items() if n not in known or known[n][0] != s}
        gone = known.keys() - stamps.keys()
        if fresh or gone:
            _write_index(self.root, fresh, gone)
        lines = [line for name, (_, line) in {**known, **fresh}.items() if name in stamps]
        return sorted((_parse_line(line) for line in lines if line), key=lambda info: -info.created)


def open_run(path: Path) -> Run:
    """Open an existing run folder.

    Raises:
        RunError: the folder has no readable spec.
    """
    header = _read_header(path)
    if header is None:
        raise RunError(f"{path} is not a run folder: no spec.json", hint="see 'holdfast runs list'")
    return Run(path, header)


def provenance() -> dict[str, Any]:
    """Where and with what a run was made; recorded, and no part of the key."""
    return {
        "created": time.time(),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def _commit() -> str | None:
    """Commit of the checkout that the package is run from; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in here.parents):
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _file_record(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"sha256": file_digest(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _read_header(path: Path) -> dict[str, Any] | None:
    """The spec of a run folder; None when there is none or it was never completely written."""
    try:
        header = read_json(path / "spec.json")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", hint="make the folder readable") from error
    if not isinstance(header, dict) or not {"key", "kind", "label", "spec"} <= header.keys():
        raise RunError(f"{path / 'spec.json'} is damaged", hint=f"delete {path} and run again")
    if header.get("format", 0) > FORMAT:
        raise RunError(
            f"{path} was written by a newer Holdfast (format {header['format']})",
            hint="pip install --upgrade holdfast",
        )
    return header


def _stamp(path: Path) -> str:
    """Changes whenever a run's spec or seal does; empty for what is not a run."""
    try:
        spec = (path / "spec.json").stat().st_mtime_ns
    except OSError:
        return ""
    try:
        return f"{spec}:{(path / 'SEALED').stat().st_mtime_ns}"
    except OSError:
        return f"{spec}:"


def _index_line(path: Path) -> str:
    try:
        run = open_run(path)
    except (RunError, OSError):
        return ""
    created = run.provenance.get("created", 0.0)
    sealed = run.seal_record() is not None
    return canonical([run.name, run.key, run.kind, run.label, created, sealed])


def _parse_line(line: str) -> RunInfo:
    return RunInfo(*json.loads(line))


_TABLE = "CREATE TABLE IF NOT EXISTS runs (name TEXT PRIMARY KEY, stamp TEXT, info TEXT)"


def _read_index(root: Path) -> dict[str, tuple[str, str]]:
    """Name -> stamp and line. The index is a cache: an unreadable one is removed and counts as empty."""
    path = root / ".index.sqlite"
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(path, timeout=10)) as index:
            rows = index.execute("SELECT name, stamp, info FROM runs").fetchall()
            return {name: (stamp, line) for name, stamp, line in rows}
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink()
        return {}


def _write_index(root: Path, fresh: Mapping[str, tuple[str, str]], gone: Iterable[str]) -> None:
    """Bring the index up to date, where the folder can be written and nobody else is at it."""
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(root / ".index.sqlite", timeout=10)) as index, index:
        index.execute(_TABLE)
        index.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", [(n, *both) for n, both in fresh.items()])
        index.executemany("DELETE FROM runs WHERE name = ?", [(name,) for name in gone])


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes on disk of files and folders."""
    return sum(
        file.stat().st_size
        for path in paths
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
