"""Energy that the machine's own counters can tell: Intel and AMD packages (RAPL), NVIDIA devices (NVML).

The counters are of whole packages and devices: whatever else runs is counted too. Most machines let only root read
RAPL; without a counter there is no figure.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

RAPL = Path("/sys/class/powercap")


def joules(rapl: Path = RAPL) -> float | None:
    """The sum of all counters that can be read, in joules since some moment; None if there is none."""
    found = [*_packages(rapl), *_devices()]
    return sum(found) if found else None


def used(before: float | None, after: float | None) -> float | None:
    """Joules between two readings; None without counters, or where one has wrapped."""
    return None if before is None or after is None or after < before else after - before


def _packages(rapl: Path) -> list[float]:
    found = []
    for counter in rapl.glob("*-rapl:[0-9]*/energy_uj"):
        if counter.parent.name.count(":") == 1:
            with contextlib.suppress(OSError, ValueError):
                found.append(int(counter.read_text()) / 1e6)
    return found


def _devices() -> list[float]:
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
    return found
