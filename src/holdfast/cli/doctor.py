"""``holdfast doctor``: is this installation and machine fit, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from holdfast.cli.common import Common, emit
from holdfast.core.errors import HoldfastError
from holdfast.core.files import free_bytes

Flat = Parameter(name="*")

EXTRAS = {"finetune": ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")}


def doctor(*, common: Annotated[Common, Flat] = Common()) -> int:
    """Check this installation and machine; exit code 1 when something needs mending."""
    checks = [_python(), *_extras(), _disk(common), _sandbox(), _device(), _runs(common)]
    lines = [f"{'ok  ' if c['ok'] else 'MEND'} {c['what']:18} {c['found']}" for c in checks]
    lines += [f"     -> {c['hint']}" for c in checks if not c["ok"]]
    bad = [c for c in checks if not c["ok"]]
    emit(common, {"checks": checks}, "\n".join(lines), then="" if bad else "holdfast demo")
    return 1 if bad else 0


def _check(what: str, ok: bool, found: str, hint: str = "") -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, "hint": hint}


def _python() -> dict[str, Any]:
    return _check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")


def _extras() -> list[dict[str, Any]]:
    checks = []
    for extra, packages in EXTRAS.items():
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        present = [f"{p} {importlib.metadata.version(p)}" for p in packages if p not in absent]
        found = ", ".join(present) if not absent else f"missing: {', '.join(absent)}"
        checks.append(_check(f"extra {extra}", not absent, found, f"pip install 'holdfast[{extra}]'"))
    return checks


def _disk(common: Common) -> dict[str, Any]:
    free = free_bytes(common.runs)
    return _check("disk for runs", free > 2**30, f"{free / 2**30:.1f} GiB free", "free some space, or use --runs DIR")


def _sandbox() -> dict[str, Any]:
    from holdfast.models.load import resolve
    from holdfast.models.sandbox import SHIPPED

    try:
        digests = [resolve(f"sandbox/{name}").identity["digest"][:8] for name in SHIPPED]
    except HoldfastError as error:
        return _check("sandbox models", False, error.message, "reinstall holdfast")
    return _check("sandbox models", True, ", ".join(f"{n} {d}" for n, d in zip(SHIPPED, digests, strict=True)))


def _device() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return _check("device", True, "not known without torch")
    import torch

    from holdfast.models.engine import Engine, device_of

    device = device_of(Engine())
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return _check("device", True, f"{device.type} ({name}), {torch.get_num_threads()} threads")


def _runs(common: Common) -> dict[str, Any]:
    infos = common.store.list()
    unfinished = sum(not info.sealed for info in infos)
    return _check("runs", True, f"{len(infos)} in {common.runs}, {unfinished} unfinished")
