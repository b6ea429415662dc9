"""How many workers the machine really allows, and what one of them may take.

A container sees all cores and all memory of its host, but its control group says what it may use. Both versions of
control groups are read, and every group above the own one: a limit holds for all below it.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

WORKER_BYTES = 700 << 20
"""What a worker may need at most; about a third of it is measured on official cases."""
_FREE_BYTES = 512 << 20
"""Left to the parent and the system."""
_UNLIMITED_BYTES = 1 << 60
"""Version 1 writes a number near 2^63 for "no limit"."""

SYSTEM_ROOT = Path("/")


@dataclass(frozen=True)
class Limits:
    """What this process may use."""

    cpus: float
    """Cores' worth of time, a fraction where the quota is one."""
    memory_bytes: int
    """Still free."""


def read_limits(root: Path = SYSTEM_ROOT) -> Limits:
    """The limits of this process: affinity, CPU quota, free memory, memory limit. `root` is / except in tests."""
    groups = _control_groups(root)
    cpus = min([float(len(os.sched_getaffinity(0))), *_cpu_quotas(groups)])
    memory_bytes = min([_available_bytes(root), *_memory_left(groups)])
    return Limits(cpus, memory_bytes)


def worker_count(limits: Limits, cases: int) -> int:
    """How many workers for this many cases: at least one, and no more than cases, whole cores and memory allow."""
    by_memory = (limits.memory_bytes - _FREE_BYTES) // WORKER_BYTES
    return max(1, min(cases, int(limits.cpus), by_memory))


def limit_own_memory(more_bytes: int = WORKER_BYTES) -> None:
    """Let this process's private memory grow by at most `more_bytes` from now on.

    An allocation beyond that fails, as MemoryError in Python, instead of taking the machine down with it.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + more_bytes
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _control_groups(root: Path) -> list[Path]:
    """The folders of this process's control groups, and all above them, that exist."""
    folders: list[Path] = []
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        # Inside a container the mount shows the own group as its top, while the path is still the host's.
        for base in {top, *(top / name for name in (controllers, *controllers.split(",")) if name)}:
            own = base / group.strip("/")
            folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return list(dict.fromkeys([top, *folders]))


def _cpu_quotas(groups: list[Path]) -> list[float]:
    quotas = []
    for group in groups:
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return quotas


def _memory_left(groups: list[Path]) -> list[int]:
    left = []
    for group in groups:
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _text(group / limit_file), _text(group / used_file)
            if limit.isdigit() and int(limit) < _UNLIMITED_BYTES:
                # What is used counts the page cache in, which gives way: at least half of the limit is there.
                left.append(max(int(limit) - int(used or 0), int(limit) // 2))
    return left


def _available_bytes(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
