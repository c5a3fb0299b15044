"""``holdfast sandbox``: rebuild the shipped sandbox models from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from holdfast.cli.common import Common, emit
from holdfast.core.errors import unknown

Flat = Parameter(name="*")


def sandbox(action: str, name: str, *, out: Path, common: Annotated[Common, Flat] = Common()) -> int:
    """Train a sandbox model as the shipped one was trained, and say whether the bytes are the same.

    Args:
        action: rebuild.
        name: micro-0, micro-1, micro-2 or nano-0.
        out: folder to write.
    """
    if action != "rebuild":
        raise unknown("action", action, ["rebuild"], "holdfast sandbox")
    from holdfast.core.keys import file_digest
    from holdfast.models.load import require_torch
    from holdfast.models.sandbox import build, shipped

    require_torch()
    there = shipped(name)
    size, _, seed = name.rpartition("-")
    with common.sink() as sink:
        build(size, int(seed), out, progress=sink)
    same = file_digest(out / "model.safetensors") == file_digest(there / "model.safetensors")
    verdict = (
        "identical to the shipped weights"
        if same
        else ("differs from the shipped weights (expected on another processor or library version)")
    )
    emit(
        common,
        {"out": str(out), "identical": same},
        verdict,
        then=f"holdfast ask --model {out} --items sandbox/hazards-test-{seed}",
    )
    return 0
