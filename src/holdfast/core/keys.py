"""Content addresses: canonical JSON and the hashes taken over it.

A run's key is the hash of its resolved spec, its method's version and its parents' keys, so the same
request always finds the same folder and any change gives another one (DESIGN section 4, rule 8).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEY_LENGTH = 10
_CHUNK = 1 << 20


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode("utf-8")).hexdigest()


def key_of(spec: Any) -> str:
    """The short key of a run: the first ten hex digits of its spec's digest."""
    return digest(spec)[:KEY_LENGTH]


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: the file cannot be read.
    """
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def folder_digest(folder: Path, suffixes: Iterable[str]) -> str:
    """Digest of the names and bytes of a folder's files that end in one of ``suffixes``."""
    wanted = tuple(suffixes)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(wanted))
    return digest([[p.relative_to(folder).as_posix(), file_digest(p)] for p in files])
