"""What of the machine this process may use: processors and memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 2**63


def usable_processors() -> int:
    """Those of the affinity mask, but no more than the cgroups' CPU quota pays for."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        membership = MEMBERSHIP.read_text()
    except OSError:  # not Linux
        return mask
    return max(1, min(mask, quota(membership, CGROUPS)))


def usable_memory() -> int:
    """Bytes of physical memory, but no more than the cgroups' limit; 1 GiB where the system does not say."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not POSIX
        return 1 << 30
    try:
        membership = MEMBERSHIP.read_text()
    except OSError:  # not Linux
        return physical
    return min(physical, memory_limit(membership, CGROUPS))


def quota(membership: str, mount: Path) -> int:
    """Whole processors of the smallest CPU quota, rounded up; very many where there is none.

    ``membership`` is the text of ``/proc/self/cgroup``: lines ``number:controllers:path``, where version 2 has no
    controllers. A quota anywhere above a group limits it, too.
    """
    found = (_quota_of(group) for group in _groups("cpu", membership, mount))
    return min((quota for quota in found if quota is not None), default=UNLIMITED)


def memory_limit(membership: str, mount: Path) -> int:
    """Bytes of the smallest memory limit, very many where there is none; arguments as of `quota`."""
    found = (_memory_limit_of(group) for group in _groups("memory", membership, mount))
    return min((limit for limit in found if limit is not None), default=UNLIMITED)


def _groups(controller: str, membership: str, mount: Path) -> Iterator[Path]:
    """The folders, if they exist, of the groups that this process is in, directly or not."""
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            folders = [mount / controller, mount / controllers]
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in folders:
            for group in (inside, *inside.parents):
                yield folder / group


def _quota_of(group: Path) -> int | None:
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if limit != "max" and int(limit) > 0:
            return math.ceil(int(limit) / int(period))
    except (OSError, ValueError):  # no such group or controller here, or a form that nobody knows
        pass
    return None


def _memory_limit_of(group: Path) -> int | None:
    name = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
    try:
        limit = (group / name).read_text().strip()
        return None if limit == "max" else int(limit)
    except (OSError, ValueError):  # as above
        return None
