"""How many cores this process may use."""

import math
import os
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

CONTROL_GROUPS, MEMBERSHIP = "/sys/fs/cgroup", "/proc/self/cgroup"


def available_cores() -> int:
    """Cores this process may use: CPU affinity, bounded by the control group's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota())


@cache
def _quota() -> float:
    """Whole cores that this process's control groups grant, or one of those around them, in either version.

    A line of /proc/self/cgroup is ``number:controllers:group``; that of version 2 has no controllers. A container may
    see its own group as the root of what is mounted, so the root is looked at too.
    """
    cores, first, second = math.inf, PurePosixPath("/"), PurePosixPath("/")
    with suppress(OSError, ValueError), open(MEMBERSHIP) as file:
        for line in file:
            _, controllers, group = line.rstrip("\n").split(":", 2)
            if not controllers:
                second = PurePosixPath(group)
            elif "cpu" in controllers.split(","):
                first = PurePosixPath(group)
    for place in (second, *second.parents):
        with suppress(OSError, ValueError), open(f"{CONTROL_GROUPS}{place}/cpu.max") as file:
            quota, period = file.read().split()
            cores = min(cores, _cores(quota, period))
    for place in (first, *first.parents):
        with suppress(OSError, ValueError):
            quota = Path(f"{CONTROL_GROUPS}/cpu{place}/cpu.cfs_quota_us").read_text()
            cores = min(cores, _cores(quota, Path(f"{CONTROL_GROUPS}/cpu{place}/cpu.cfs_period_us").read_text()))
    return cores


def _cores(quota: str, period: str) -> float:
    """Whole cores of a quota of microseconds a period; "max" and -1 are no quota."""
    return math.inf if quota == "max" or int(quota) < 0 else max(1, int(quota) // int(period))
