"""Where the time of a case went, and the most memory the process has held."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunTimings:
    """Seconds by phase. Reading overlaps the other phases, and on a GPU preprocessing does: they do not add up."""

    import_s: float
    """From the start of the process until everything was imported; once a process."""
    load_s: float
    """Reading, checking and preparing the model; once a process."""
    read_s: float
    """Decoding the stack, in a thread of its own."""
    wait_s: float
    """What of that the scoring had to wait for."""
    preprocess_s: float
    """Upload and resize; part of the gate's time, or without a gate of refine's."""
    gate_s: float
    """Scoring by the gate; 0 where all frames are scored by all members."""
    refine_s: float
    """Scoring by the whole ensemble."""
    recheck_s: float
    """Asking again in float32, beside half precision; 0 where nothing is."""
    segment_s: float
    """Outlining and measuring."""
    write_s: float
    """Writing and reading back."""
    first_frame_s: float
    """Until the first batch was scored; from where `total_s` counts."""
    total_s: float
    """From the start of the process for its first case in exec mode, else from the start of the case."""
    peak_rss_bytes: int
    """The most main memory the process has held so far."""
    peak_device_bytes: int
    """The most GPU memory its tensors have taken so far; 0 on a CPU."""


def process_age_s() -> float:
    """Seconds since this process was started by the system, its interpreter's start included."""
    stat = Path("/proc/self/stat").read_text()
    # The second field is the program's name in brackets and may hold spaces; the start time is field 22.
    started_ticks = int(stat.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int:
    """The high-water mark of this process's resident memory (getrusage's also counts the parent's before exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
