"""How large a model is, read from its files' headers: what plans and memory checks are made of."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from holdfast.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a model: all, those of matrices inside layers, and what a LoRA of rank 1 would add."""

    parameters: int
    lora_per_rank: int
    stored_bytes: int


def size_of(folder: Path) -> Size:
    """Read the shapes in a folder's safetensors headers; no tensor is loaded.

    Raises:
        ModelError: a file is not safetensors.
    """
    parameters = per_rank = stored = 0
    for path in sorted(folder.glob("*.safetensors")):
        stored += path.stat().st_size
        for name, shape in _shapes(path).items():
            parameters += math.prod(shape)
            inside = any(part.isdigit() for part in name.split("."))
            if len(shape) == 2 and inside:
                per_rank += sum(shape)
    return Size(parameters, per_rank, stored)


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
    except (struct.error, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file: {error}", hint="fetch or make the file again"
        ) from error
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
