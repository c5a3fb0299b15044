"""Time and memory of a stage, measured around it."""

from __future__ import annotations

import re
import time
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Wall seconds, CPU seconds of this process, and peak memory since it was made.

    Peak memory is the accelerator's when one is used; else the process's peak resident memory, which Linux lets
    one reset; elsewhere it is None, "not measured".
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        try:
            _RESET.write_text("5")
            self._can_peak = True
        except OSError:
            self._can_peak = False
        if _cuda():
            import torch

            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, float | int | None]:
        """``seconds``, ``cpu_seconds`` and ``peak_bytes`` so far."""
        return {
            "seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
            "peak_bytes": self._peak(),
        }

    def _peak(self) -> int | None:
        if _cuda():
            import torch

            return int(torch.cuda.max_memory_allocated())
        if not self._can_peak:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return int(found[1]) * 1024 if found else None


def _cuda() -> bool:
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())
