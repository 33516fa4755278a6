"""Compiles the core's C++ into one plain shared library: when the package is installed, else on first use.

Uses no other module of the package, so that setup.py can run this file before there is a package.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libopenzaya_core.so"
_COMPILERS = ("g++", "clang++", "c++")
# No flag names this machine's processor: each function names the instructions that it may use. Fused multiplication
# and addition is off because not every variant has it, and all of them must give the same bits.
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
    "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno",
)  # fmt: skip
# A library built here runs where libstdc++ is older, and shows none of it to others in the process.
_LINK_FLAGS = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL") if sys.platform == "linux" else ()
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")
"""Extra flags of a build that stops at the first bad read, write or undefined operation."""


class BuildError(RuntimeError):
    """The core could not be compiled; the message says why and what helps."""


def find_compiler() -> list[str]:
    """The command that compiles C++: what CXX says, else the first compiler there is. Raises BuildError for none."""
    if given := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(given[0]):
            return given
        raise BuildError(f"CXX is {os.environ['CXX']!r}, which is no program here; set it to a C++ compiler")
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"no C++ compiler was found ({', '.join(_COMPILERS)}); install g++, or name one in CXX")


def fingerprint() -> str:
    """Names these sources and flags: a library that says another name was built from others."""
    content = hashlib.blake2b(digest_size=8)
    for path in sorted(SOURCES.iterdir()):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    content.update(repr((_FLAGS, _LINK_FLAGS)).encode())
    return content.hexdigest()


def build(target: Path, extra_flags: Sequence[str] = ()) -> None:
    """Compile all sources into the shared library `target`, which appears whole or not at all.

    Raises BuildError where there is no compiler or it fails.
    """
    compiler = find_compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
        built = Path(folder) / LIBRARY
        link_flags = () if extra_flags else _LINK_FLAGS  # sanitizers bring runtimes of their own
        command = [
            *compiler, *_FLAGS, *extra_flags, f'-DOZ_FINGERPRINT="{fingerprint()}"',
            *map(str, sorted(SOURCES.glob("*.cpp"))), *link_flags, "-o", str(built),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
            raise BuildError(
                f"{compiler[0]} could not compile the core ({first}); g++ 12 or clang++ 12 or newer is needed, and CXX "
                "names another compiler"
            )
        built.replace(target)
