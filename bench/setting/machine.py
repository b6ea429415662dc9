"""What a figure was measured on and with: it stands beside every figure."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "SimpleITK", "safetensors", "open_clip_torch", "peft", "torchvision")


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, GPU if the driver names one; without importing torch."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None,
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python, the commit and the packages that matter; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    commit = _output("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*")
    if commit:
        found["commit"] = commit
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def warn_if_busy(load: float, cores: int) -> str | None:
    """A sentence where other work was under way when the measurement began, for the top of a table."""
    if load < 0.5 * cores:
        return None
    return f"NOTE: the machine's load was {load:.1f} on {cores} cores before this began: other work disturbs the times"


def _processor() -> str:
    """Its name, and on x86 family and model: clouds give one name to generations that differ twofold."""
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    words = [found.get("model name", platform.machine())]
    words += [f"{key.removeprefix('cpu ')} {found[key]}" for key in ("cpu family", "model") if key in found]
    return ", ".join(words)


def _output(*command: str) -> str:
    """A command's output on one line; nothing where it is not there or fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(ended.stdout.split("\n")).strip(", ")
