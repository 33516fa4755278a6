"""Finds the shared library of the core, loads it and declares its functions (`csrc/abi.h`)."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from pathlib import Path

from openzaya.engine.core.build import LIBRARY, BuildError, build, fingerprint

_lock = threading.Lock()


class CoreUnavailable(RuntimeError):
    """There is no compiled core on this machine; the message says why and what helps."""


class Matrix(ctypes.Structure):
    """`oz_matrix`."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("experts", ctypes.c_int32),
    )


class Activations(ctypes.Structure):
    """`oz_activations`."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("tokens", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group", ctypes.c_int32),
    )


class Grouping(ctypes.Structure):
    """`oz_grouping`."""

    _fields_ = (("places", ctypes.c_void_p), ("ends", ctypes.c_void_p))


def load() -> ctypes.CDLL:
    """The library: as installed, else as built before, else built now (some seconds, once).

    OPENZAYA_CORE names another one. Raises CoreUnavailable where none can be had.
    """
    with _lock:
        return _load()


@functools.cache
def _load() -> ctypes.CDLL:
    if given := os.environ.get("OPENZAYA_CORE"):
        return _opened(Path(given))
    installed = Path(__file__).parent / LIBRARY
    if installed.is_file():
        library = _opened(installed)
        if library.oz_fingerprint().decode() == fingerprint():
            return library
    cached = _cached()
    if not cached.is_file():
        try:
            build(cached)
        except (BuildError, OSError) as error:
            raise CoreUnavailable(f"the compiled core is not there and could not be built: {error}") from error
    return _opened(cached)


def _cached() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "openzaya" / f"core-{platform.machine()}-{fingerprint()}.so"


def _opened(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CoreUnavailable(f"{path} cannot be loaded ({error}); remove it, and it is built anew") from error
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    core, pointer, integer, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    product = (None, core, ctypes.POINTER(Matrix), ctypes.POINTER(Activations), ctypes.POINTER(Grouping), pointer, size)
    signatures = {
        "oz_fingerprint": (ctypes.c_char_p,),
        "oz_variant_count": (ctypes.c_int,),
        "oz_variant_name": (ctypes.c_char_p, ctypes.c_int),
        "oz_supported": (ctypes.c_uint32,),
        "oz_open": (core, ctypes.c_int, ctypes.c_int),
        "oz_close": (None, core),
        "oz_quantise": (None, core, pointer, size, size, integer, pointer, pointer, pointer),
        "oz_product": product,
        "oz_product_swiglu": product,
        "oz_read": (ctypes.c_uint64, core, pointer, size),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
