"""Builds the compiled core with the package; everything else is in pyproject.toml.

The core is a plain shared library, no Python module, so one build serves every Python version of its system. Without a
compiler the package is installed without it and says so here; the first use of the core then tries again.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CORE = Path("src", "openzaya", "engine", "core")
build = runpy.run_path(str(Path(__file__).parent / CORE / "build.py"))


class BuildCore(build_ext):
    """Compiles the core in one command of its own, in place of an extension module's."""

    def build_extension(self, ext: Extension) -> None:
        try:
            build["build"](Path(self.get_ext_fullpath(ext.name)).absolute())
        except build["BuildError"] as error:
            print(f"openzaya is installed without its compiled core, and goes on with torch: {error}", file=sys.stderr)
            raise CompileError(str(error)) from error  # the extension is optional, so setuptools goes on

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], build["LIBRARY"]))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """A wheel for this kind of machine and for any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("openzaya.engine.core.libopenzaya_core", sources=[], optional=True)],
    cmdclass={"build_ext": BuildCore, "bdist_wheel": Wheel},
)
