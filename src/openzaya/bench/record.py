"""What goes with figures so that they can be believed and repeated, and the file that they go to."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from openzaya.engine.core.products import CoreUnavailable, supported_variants


def record(benchmark: str, command: Sequence[str], figures: Mapping[str, Any]) -> dict[str, Any]:
    """One object: what was run, when, and of which commit, then the figures, `machine` among them."""
    return {
        "benchmark": benchmark,
        "command": shlex.join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        **figures,
    }


def save(report: Mapping[str, Any], file: Path) -> None:
    """Write a report, whole or not at all; raises OSError where that cannot be done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def commit() -> str:
    """The commit of these sources, marked where they were changed since; the version where they are no checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"openzaya {version('openzaya')}"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, instruction sets, accelerators, and how busy it is: ask before measuring."""
    try:
        variants: tuple[str, ...] = supported_variants()
    except CoreUnavailable:
        variants = ()
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "instruction_sets": list(variants),
        "devices": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())] if cuda else [],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
