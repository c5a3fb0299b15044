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
        name: micro-0, micro-1, micro-2, nano-0, (seeing) vlm-0, vlm-1, vlm-2, or (recognisers of drawn faces)
            drawn-mobile, drawn-mobile-b, drawn-patch, drawn-plain, drawn-residual.
        out: folder to write.
    """
    if action != "rebuild":
        raise unknown("action", action, ["rebuild"], "holdfast sandbox")
    from holdfast.core.keys import file_digest
    from holdfast.models import sandbox as blind
    from holdfast.models import sandbox_vision as seeing
    from holdfast.models.load import require_torch, resolve

    require_torch()
    if name.startswith("drawn-"):
        return _recogniser(name, out, common)
    there = resolve(f"sandbox/{name}").folder
    size, _, seed = name.rpartition("-")
    sees = name in seeing.SHIPPED
    with common.sink() as sink:
        (seeing if sees else blind).build(size, int(seed), out, progress=sink)
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
        then=f"holdfast ask --model {out} --items sandbox/{'workshop-' if sees else ''}hazards-test-{seed}",
    )
    return 0


def _recogniser(name: str, out: Path, common: Common) -> int:
    """Train a recogniser of drawn faces again."""
    from holdfast.core.keys import file_digest
    from holdfast.faces.recogniser import find_recogniser
    from holdfast.faces.sandbox import build

    there = find_recogniser(name)
    with common.sink() as sink:
        build(name, out, progress=sink)
    same = file_digest(out / "model.safetensors") == file_digest(there / "model.safetensors")
    differs = "differs from the shipped weights (expected on another processor or library version)"
    verdict = "identical to the shipped weights" if same else differs
    then = f"holdfast faces learn PHOTOS --recognisers {out}"
    emit(common, {"out": str(out), "identical": same}, verdict, then=then)
    return 0
