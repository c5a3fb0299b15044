"""Writing files so that a kill at any moment leaves either the old file or the new one.

Whole files go through a temporary name and ``os.replace``; row files only grow, and a last line that
was cut short is dropped when the file is opened again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.core.errors import ResourceError, RunError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that say what to do.

    Raises:
        ResourceError: the disk is full, or a limit on the size of files is reached.
        RunError: the folder is read-only or not ours, or was taken away.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number is None:
            raise
        reason = os.strerror(number)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"no space left on the disk while writing {path} ({reason})",
                hint="free some space or choose another folder with --runs DIR, then run the same "
                "command again: finished work is kept",
            ) from error
        raise RunError(
            f"cannot write {path}: {reason}",
            hint="make the folder writable or choose another one with --runs DIR",
        ) from error


def _system_error(error: Exception) -> int | None:
    """The operating system's error number, also out of the text of libraries written in Rust; None if there is none."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replace ``path`` by ``content`` in one step, flushed to the disk.

    Args:
        path: the file.
        content: all of it.
        private: nobody but its owner may read it, at no moment.

    Raises:
        ResourceError, RunError: see :func:`writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp gives 0600; a result should be as readable as any file its owner makes.
            if not private:
                Path(temporary).chmod(0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_text(path: Path, content: str) -> None:
    """Replace ``path`` by UTF-8 ``content`` in one step."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by indented JSON. NaN is refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that Holdfast wrote.

    Raises:
        RunError: the file is not JSON.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {error}", hint=f"delete {path.parent} and run again") from error


def readable(folder: Path) -> None:
    """Give every file below a folder the permissions that its owner's files usually have.

    safetensors writes 0600, so that nobody else could serve the model.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~_umask())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


class RowFile:
    """A JSON Lines file that only grows; one writer at a time.

    On opening, a last line without its newline (the writer was killed inside it) is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(path)
            # Unbuffered: what a full disk refused must not be tried again when the file is closed.
            self._stream = path.open("ab", buffering=0)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and flush them to the disk together."""
        text = "".join(
            json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows
        )
        with writing(self.path):
            left = memoryview(text.encode("utf-8"))
            while left:
                left = left[self._stream.write(left) :]
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop_partial_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file that Holdfast wrote; a cut-off last line is not a row.

    Raises:
        RunError: a whole line is not a JSON object.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path}, line {number} is damaged: {error}",
                hint=f"delete {path} and run the same command again; it is made anew",
            ) from error
        rows.append(row)
    return rows


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds ``folder`` (or its nearest existing parent)."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
