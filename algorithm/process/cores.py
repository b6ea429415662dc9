"""How many cores this process may use. No torch: decoding starts before torch is imported."""

import os
from pathlib import Path

CGROUP_CPU_FILES = (
    Path("/sys/fs/cgroup/cpu.max"),  # version 2: "quota period" or "max period"
    Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),  # version 1, with cpu.cfs_period_us beside it
)


def usable_cores() -> tuple[int, str]:
    """As many as affinity and the cgroup's quota allow, with the reason; fewer where OMP_NUM_THREADS asks for fewer."""
    affinity = len(os.sched_getaffinity(0))
    quota = cgroup_cpus()
    cores = affinity if quota is None else max(1, min(affinity, int(quota)))
    limit = "no cgroup quota" if quota is None else f"a cgroup quota of {quota:g}"
    reason = f"{affinity} cores by affinity, {limit}"
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and 0 < int(wanted) < cores:
        return int(wanted), f"OMP_NUM_THREADS; {reason}"
    return cores, reason


def cgroup_cpus(files: tuple[Path, ...] = CGROUP_CPU_FILES) -> float | None:
    """How many CPUs' time the cgroup grants, or None where it sets no limit."""
    for path in files:
        try:
            words = path.read_text().split()
            if path.name != "cpu.max":
                words.append((path.parent / "cpu.cfs_period_us").read_text().strip())
            quota, period = words[0], float(words[1])
        except (OSError, IndexError, ValueError):
            continue
        if quota in ("max", "-1"):
            return None
        return float(quota) / period
    return None
