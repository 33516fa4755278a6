"""What Triton's compiler says of a kernel for processors that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def shared_memory_of(script: str, cache: Path) -> list[int]:
    """The shared memory, in bytes, of every kernel that `script` compiles, which prints it last on a line of its own.

    In a process of its own, since a process that interprets kernels cannot compile them.
    """
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**plain, "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line.split()[-1]) for line in done.stdout.splitlines()]
