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
    """There is no compiled core on this machine, or none for a model; the message says why and what helps."""


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


def _pointers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


def _integers(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_int32) for name in names)


def _sizes(*names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, ctypes.c_int64) for name in names)


class Residual(ctypes.Structure):
    """`oz_residual`."""

    _fields_ = _pointers("output_bias", "output_scale", "residual_bias", "residual_scale", "norm")


class Attention(ctypes.Structure):
    """`oz_attention`."""

    _fields_ = (
        *_integers("query_heads", "key_heads", "channels", "taps0", "taps1", "rotary"),
        *_integers("page_tokens", "kept", "bfloat16"),
        *_sizes("window"),
        *_pointers(
            "cosine", "sine", "depthwise", "depthwise_bias", "grouped", "grouped_bias", "temperature", "keys",
            "values", "columns", "delayed",
        ),
    )  # fmt: skip


class Router(ctypes.Structure):
    """`oz_router`."""

    _fields_ = (
        *_integers("hidden", "width", "classes", "bfloat16"),
        ("epsilon", ctypes.c_float),
        *_pointers(
            "down", "fc1", "fc2", "out", "down_bias", "depth_scale", "norm", "fc1_bias", "fc2_bias", "balancing"
        ),
    )


class Layer(ctypes.Structure):
    """`oz_layer`."""

    _fields_ = (
        ("attention", Attention),
        ("router", Router),
        ("after_attention", Residual),
        ("after_experts", Residual),
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
    )


class Model(ctypes.Structure):
    """`oz_model`."""

    _fields_ = (
        *_integers("layer_count", "hidden", "skip_is_identity"),
        ("epsilon", ctypes.c_float),
        ("layers", ctypes.POINTER(Layer)),
        ("embedding", Matrix),
        ("head", Matrix),
        *_pointers("embedding_bias", "embedding_scale"),
        ("first", Residual),
    )


class Batch(ctypes.Structure):
    """`oz_batch`."""

    _fields_ = (
        *_sizes("tokens", "sequences", "pages", "pages_a_slot"),
        *_pointers("sequence_of", "firsts", "slots", "positions", "tables", "order"),
    )


STAGES = (
    "embedding", "qkv", "convolution", "attention", "output", "residual", "router", "experts up", "experts down",
    "head",
)  # fmt: skip
"""`oz_stage`."""


BLOCK = 512
"""`OZ_BLOCK`: scores of which a step finds the highest one."""


class Step(ctypes.Structure):
    """`oz_step`."""

    _fields_ = (
        ("batch", Batch),
        *_pointers("ids"),
        *_sizes("scored"),
        *_pointers("scored_tokens", "logits", "tops", "chosen", "stage_seconds", "scratch"),
    )


def load() -> ctypes.CDLL:
    """The library: as installed, else as built before, else built now (some seconds, once).

    OPENZAYA_CORE names another one. Raises CoreUnavailable where none can be had.
    """
    with _lock:
        return _load()


@functools.cache
def _load() -> ctypes.CDLL:
    if given := os.environ.get("OPENZAYA_CORE"):
        return _declared(_opened(Path(given), "unset OPENZAYA_CORE, or name another library in it"))
    installed = Path(__file__).parent / LIBRARY
    if installed.is_file():
        library = _opened(installed)
        # One of other sources may lack functions that these have, so nothing else is looked up before this.
        library.oz_fingerprint.restype = ctypes.c_char_p
        if library.oz_fingerprint().decode() == fingerprint():
            return _declared(library)
    cached = _cached()
    if not cached.is_file():
        try:
            build(cached)
        except (BuildError, OSError) as error:
            raise CoreUnavailable(f"the compiled core is not there and could not be built: {error}") from error
    return _declared(_opened(cached))


def _cached() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "openzaya" / f"core-{platform.machine()}-{fingerprint()}.so"


def _opened(path: Path, remedy: str = "remove it, and it is built anew") -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CoreUnavailable(f"{path} cannot be loaded ({error}); {remedy}") from error


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    core, pointer, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
    model, attention, batch = ctypes.POINTER(Model), ctypes.POINTER(Attention), ctypes.POINTER(Batch)
    product = (None, core, ctypes.POINTER(Matrix), ctypes.POINTER(Activations), ctypes.POINTER(Grouping), pointer, size)
    signatures = {
        "oz_fingerprint": (ctypes.c_char_p,),
        "oz_variant_count": (ctypes.c_int,),
        "oz_variant_name": (ctypes.c_char_p, ctypes.c_int),
        "oz_supported": (ctypes.c_uint32,),
        "oz_open": (core, ctypes.c_int, ctypes.c_int),
        "oz_close": (None, core),
        "oz_quantise": (None, core, pointer, ctypes.POINTER(Activations)),
        "oz_product": product,
        "oz_product_swiglu": product,
        "oz_step_bytes": (size, model, size, size, size),
        "oz_run_step": (None, core, model, ctypes.POINTER(Step)),
        "oz_draw_tokens": (None, core, pointer, pointer, size, size, pointer, pointer),
        "oz_likeliest": (None, core, pointer, pointer, size, size, size, pointer, pointer, pointer),
        "oz_merge_norm": (
            None, core, ctypes.POINTER(Residual), size, size, ctypes.c_float, pointer, pointer, pointer, pointer,
        ),
        "oz_convolve": (None, core, attention, batch, pointer, pointer),
        "oz_attend": (None, core, attention, batch, pointer, pointer, pointer),
        "oz_running": (size, attention, size, size),
        "oz_route": (None, core, ctypes.POINTER(Router), size, pointer, pointer, pointer, pointer),
        "oz_read": (ctypes.c_uint64, core, pointer, size),
    }  # fmt: skip
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
