"""Building and finding the compiled core: with a compiler, without one, installed, from the cache, with sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from openzaya.engine.core import build, library
from openzaya.engine.core.build import SANITIZERS, BuildError, find_compiler, fingerprint
from openzaya.engine.core.library import CoreUnavailable

TESTS = Path(__file__).parent.parent
REPOSITORY = TESTS.parent


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No library was loaded or built before; the cache is in the folder given back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OPENZAYA_CORE", raising=False)
    monkeypatch.setattr(library, "LIBRARY", "absent.so")
    library._load.cache_clear()
    yield tmp_path
    library._load.cache_clear()


def compiler_that(folder, script):
    """A compiler that does what `script` says; `$target` is the file asked for."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\nfor target; do :; done\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_is_the_one_in_cxx_or_the_first_there_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", f"{sys.executable} -extra")
    assert find_compiler() == [sys.executable, "-extra"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="CXX is 'no-such-compiler', which is no program"):
        find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler was found"):
        find_compiler()
    clang = tmp_path / "clang++"
    clang.touch(mode=0o755)
    assert find_compiler() == ["clang++"]


def test_without_a_compiler_the_core_says_in_one_sentence_what_helps(fresh, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CoreUnavailable, match=r"could not be built: no C\+\+ compiler was found .* install g\+\+"):
        library.load()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh, monkeypatch):
    monkeypatch.setenv(
        "CXX", compiler_that(fresh, 'echo >&2 "x.cpp:1: error: no such thing"; echo > "$target"; exit 1')
    )
    with pytest.raises(CoreUnavailable, match="error: no such thing"):
        library.load()
    assert list((fresh / "openzaya").iterdir()) == []


def test_a_cached_library_that_cannot_be_loaded_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CXX", compiler_that(fresh, 'echo broken > "$target"'))
    with pytest.raises(CoreUnavailable, match=rf"core-.*-{fingerprint()}\.so cannot be loaded .* remove it"):
        library.load()


def test_a_library_that_is_named_is_the_one_that_is_loaded(fresh, monkeypatch):
    monkeypatch.setenv("OPENZAYA_CORE", str(fresh / "mine.so"))
    with pytest.raises(CoreUnavailable, match=r"mine\.so cannot be loaded .* unset OPENZAYA_CORE"):
        library.load()


def test_an_installed_library_of_other_sources_is_passed_over_whatever_it_lacks(fresh, monkeypatch):
    source, installed = fresh / "old.cpp", fresh / "old.so"
    source.write_text('extern "C" const char *oz_fingerprint() { return "of other sources"; }')
    subprocess.run([*find_compiler(), "-shared", "-fPIC", "-o", str(installed), str(source)], check=True)
    monkeypatch.setattr(library, "LIBRARY", str(installed))
    monkeypatch.setenv("CXX", compiler_that(fresh, "exit 1"))
    with pytest.raises(CoreUnavailable, match="could not be built"):
        library.load()


def test_the_fingerprint_follows_the_sources(monkeypatch, tmp_path):
    before = fingerprint()
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    assert fingerprint() == before
    with (sources / "pool.h").open("a") as file:
        file.write("// more\n")
    assert fingerprint() != before


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
def test_installing_takes_the_core_along_or_says_why_not(tmp_path, works):
    """With a stand-in for the compiler: that the real one compiles is what every other test of the core shows."""
    tree = tmp_path / "tree"
    core = tree / "src" / "openzaya" / "engine" / "core"
    shutil.copytree(REPOSITORY / "src" / "openzaya" / "engine" / "core", core)
    for package in (core.parent, core.parent.parent):
        (package / "__init__.py").touch()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    compiler = compiler_that(tmp_path, 'echo core > "$target"' if works else "exit 1")
    command = [sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('dist')"]
    (tree / "dist").mkdir()
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, "CXX": compiler}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", wheel.name)
    assert ("openzaya/engine/core/libopenzaya_core.so" in names) == works
    assert {f"openzaya/engine/core/csrc/{path.name}" for path in build.SOURCES.iterdir()} <= set(names)
    assert ("installed without its compiled core" in done.stderr) != works


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sanitizers_find_nothing_in_any_variant(tmp_path):
    try:
        compiler = find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    sanitized = tmp_path / "core.so"
    build.build(sanitized, SANITIZERS)
    asan = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        **os.environ,
        "OPENZAYA_CORE": str(sanitized),
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    tests = [str(TESTS / "engine" / f"test_core_{part}.py") for part in ("products", "layers", "executor")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "passed" in done.stdout
