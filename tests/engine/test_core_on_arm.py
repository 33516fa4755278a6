"""The core for 64-bit Arm: cross-compiled and run in an emulator, where both are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from openzaya.engine.core.build import SOURCES, build, find_compiler

DRIVER = Path(__file__).with_name("variants_agree.cpp")
CROSS, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"


def built_driver(folder, compiler, monkeypatch):
    """The driver and the core as the package builds it, by `compiler`."""
    folder.mkdir()
    monkeypatch.setenv("CXX", compiler)
    build(folder / "libcore.so")
    program = folder / "variants_agree"
    command = [compiler, "-std=c++17", "-I", SOURCES, DRIVER, folder / "libcore.so", f"-Wl,-rpath,{folder}"]
    subprocess.run([*map(str, command), "-o", str(program)], check=True)
    return str(program)


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *names, results = done.stdout.split()
    return names, results


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_products_on_arm_have_the_bits_of_every_other_processor(tmp_path, monkeypatch):
    for program, package in ((CROSS, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed; Debian has it in {package}")
    here = built_driver(tmp_path / "here", find_compiler()[0], monkeypatch)
    arm = built_driver(tmp_path / "arm", CROSS, monkeypatch)
    _, expected = output_of(here)
    names, results = output_of(EMULATOR, "-L", LIBRARIES, "-cpu", "max", arm)
    assert names == ["portable", "neondot"]
    assert results == expected
    # A processor without dot products of bytes is told by what the system says of it.
    names, results = output_of(EMULATOR, "-L", LIBRARIES, "-cpu", "cortex-a53", arm)
    assert names == ["portable"]
    assert results == expected
