"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Those of the affinity mask, but no more than the cgroups' CPU quota pays for."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        membership = Path("/proc/self/cgroup").read_text()
    except OSError:  # not Linux
        return mask
    return max(1, min(mask, quota(membership, CGROUPS)))


def quota(membership: str, mount: Path) -> int:
    """Whole processors of the smallest CPU quota, rounded up; very many where there is none.

    ``membership`` is the text of ``/proc/self/cgroup``: lines ``number:controllers:path``, where version 2 has no
    controllers. A quota anywhere above a group limits it, too.
    """
    found = [2**31]
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            folders = [mount / "cpu", mount / controllers]
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in folders:
            for group in (inside, *inside.parents):
                found += _quota_of(folder / group)
    return min(found)


def _quota_of(group: Path) -> Iterator[int]:
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if limit != "max" and int(limit) > 0:
            yield math.ceil(int(limit) / int(period))
    except (OSError, ValueError):  # no such group or controller here, or a form that nobody knows
        return
