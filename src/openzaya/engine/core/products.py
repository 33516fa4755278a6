"""Products of tokens with quantised matrices, tokens quantised to int8 first, each with a scale of its own.

    y = s_x * sum over groups in ascending order of (s_w * dot)      dot in int32, everything else in float32

No sum depends on the other tokens, on the number of threads or on the instruction set, so neither does any bit of y.

T tokens, N rows of a matrix, K columns, E matrices of a stack, G groups of a row.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from openzaya.engine.core import library
from openzaya.engine.core.library import CoreUnavailable, load
from openzaya.model.quantised.scheme import LANES, STEP_BYTES, STEP_COLUMNS

__all__ = ["Activations", "Core", "CoreUnavailable", "Grouping", "PackedMatrix", "address", "supported_variants"]

_BLOCKS = {4: 2 * LANES, 8: LANES}
"""Rows of a block, by bits."""
_MOST_COLUMNS = 1 << 16
"""Beyond this an int32 could not hold every dot product of bytes."""
MOST_TOKENS = 1 << 19
"""A phase of the pool has room for twice as many chunks."""
_MOST_THREADS = 1024
_MEASURING_SECONDS, _FEWEST_ROUNDS = 0.15, 5


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix W (N, K), or a stack of E of them, quantised and packed; the arrays may be views of a file.

    | bits | codes | scales |
    |---|---|---|
    | 4 | uint8 ([E,] N/32, K/4, 64): low nibbles rows 0-15 of a block, high ones 16-31, each the integer plus 8 | float16 ([E,] N/32, G, 32) |
    | 8 | int8 ([E,] N/16, K/4, 64): 4 columns of each of 16 rows | float32 ([E,] N/16, 16) |

    N is rounded up; `rows` is without what fills the last block. Raises ValueError for arrays of another form.
    """  # noqa: E501 (a table)

    codes: np.ndarray
    scales: np.ndarray
    rows: int

    def __post_init__(self) -> None:
        codes, scales = self.codes, self.scales
        kinds = (codes.dtype, scales.dtype)
        if kinds not in ((np.uint8, np.float16), (np.int8, np.float32)):
            raise ValueError(
                f"codes are {codes.dtype} and scales {scales.dtype}; they must be uint8 and float16 (4 bits) or int8 "
                "and float32 (8 bits)"
            )
        if codes.ndim not in (3, 4) or codes.shape[-1] != STEP_BYTES or 0 in codes.shape:
            raise ValueError(f"codes have shape {codes.shape}; it must be ([experts,] blocks, columns / 4, 64)")
        blocks = -(-self.rows // self.block_rows)
        if self.rows < 1 or codes.shape[-3] != blocks:
            raise ValueError(
                f"codes have {codes.shape[-3]} blocks of {self.block_rows} rows, not what {self.rows} need"
            )
        groups = scales.shape[-2:-1] if self.bits == 4 else ()
        if scales.shape != (*codes.shape[:-2], *groups, self.block_rows):
            raise ValueError(f"scales have shape {scales.shape}, which does not belong to codes of shape {codes.shape}")
        if self.bits == 4 and (self.columns % groups[0] or self.group % 32):
            raise ValueError(
                f"{groups[0]} groups of {self.columns} columns are groups of {self.columns / groups[0]:g}; they must "
                "be of a multiple of 32"
            )
        if self.columns > _MOST_COLUMNS:
            raise ValueError(f"the matrix has {self.columns} columns; the core adds up at most {_MOST_COLUMNS}")
        for name, array in (("codes", codes), ("scales", scales)):
            if not (array.flags.c_contiguous and array.flags.aligned):
                raise ValueError(f"{name} are not contiguous and aligned in memory; pass a copy")

    @property
    def bits(self) -> int:
        return 4 if self.codes.dtype == np.uint8 else 8

    @property
    def block_rows(self) -> int:
        return _BLOCKS[self.bits]

    @property
    def columns(self) -> int:
        return self.codes.shape[-2] * STEP_COLUMNS

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scales.shape[-2] if self.bits == 4 else self.columns

    @property
    def experts(self) -> int:
        return self.codes.shape[0] if self.codes.ndim == 4 else 1

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def stored(self) -> library.Matrix:
        return library.Matrix(
            address(self.codes), address(self.scales), self.rows, self.columns, self.bits, self.group, self.experts
        )


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Tokens as int8: x = scale * codes, with scale = max|x| / 127 of the token."""

    codes_TK: np.ndarray
    scales_T: np.ndarray
    sums_TG: np.ndarray
    """Sums of the codes over each group, int32."""

    @property
    def tokens(self) -> int:
        return self.codes_TK.shape[0]

    @property
    def columns(self) -> int:
        return self.codes_TK.shape[1]

    @property
    def group(self) -> int:
        return self.columns // self.sums_TG.shape[1]

    def stored(self) -> library.Activations:
        return library.Activations(
            address(self.codes_TK), address(self.scales_T), address(self.sums_TG), self.tokens, self.columns, self.group
        )


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """Which tokens each matrix of a stack multiplies: those at `places[ends[e - 1]:ends[e]]` for matrix e."""

    places: np.ndarray
    """Numbers of tokens, int32, by matrix; a token that is in none gets no output."""
    ends_E: np.ndarray

    @classmethod
    def of(cls, chosen_T: np.ndarray, experts: int) -> Grouping:
        """Group tokens by the expert that each chose; other numbers than 0 to `experts` - 1 choose none."""
        order = np.argsort(chosen_T, kind="stable")
        ends_E = np.searchsorted(chosen_T[order], np.arange(1, experts + 1))
        first = np.searchsorted(chosen_T[order], 0)
        return cls(order[first : ends_E[-1]].astype(np.int32), (ends_E - first).astype(np.int32))


def supported_variants() -> tuple[str, ...]:
    """Instruction sets that this machine runs, best last. Raises CoreUnavailable without a compiled core."""
    core = load()
    names = [core.oz_variant_name(number).decode() for number in range(core.oz_variant_count())]
    return tuple(name for number, name in enumerate(names) if core.oz_supported() >> number & 1)


class Core:
    """One variant of the kernels and a pool of threads for them.

    Any thread may call it; calls wait for each other and leave other Python threads running meanwhile. It survives a
    fork. `close` ends its threads, and so does losing it.
    """

    def __init__(self, *, threads: int | None = None, variant: str | None = None) -> None:
        """`threads` counts the calling one; None measures how many pay (a fifth of a second). `variant` None is the
        best that this machine has. Raises ValueError for a variant that it has not, CoreUnavailable without a core."""
        self._library = load()
        supported = supported_variants()
        if variant is not None and variant not in supported:
            raise ValueError(f"variant is {variant!r}; this machine runs {', '.join(supported)}")
        if threads is not None and not 1 <= threads <= _MOST_THREADS:
            raise ValueError(f"threads is {threads}; it must be between 1 and {_MOST_THREADS}")
        self.variant = variant or supported[-1]
        self.threads = _measured_threads(self.variant) if threads is None else threads
        names = [self._library.oz_variant_name(number) for number in range(self._library.oz_variant_count())]
        self._core = self._library.oz_open(names.index(self.variant.encode()), self.threads)
        if not self._core:
            raise MemoryError("the compiled core could not be opened; free some memory")
        self._closing = weakref.finalize(self, self._library.oz_close, self._core)

    def close(self) -> None:
        """End the threads. Closing twice is harmless; anything else after it raises ValueError."""
        self._closing()
        self._core = None

    def __enter__(self) -> Core:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def quantise(self, x_TK: np.ndarray, group: int | None = None) -> Activations:
        """Quantise tokens for matrices with groups of `group` columns (None: one scale a row).

        A token that holds an infinity or a NaN gets the scale NaN, so that all of its products are NaN. Raises
        ValueError for anything but a contiguous float32 matrix whose columns `group` divides.
        """
        if x_TK.dtype != np.float32 or x_TK.ndim != 2 or not x_TK.flags.c_contiguous:
            raise ValueError(f"tokens are {x_TK.dtype} of shape {x_TK.shape}; they must be a contiguous float32 matrix")
        tokens, columns = x_TK.shape
        if tokens > MOST_TOKENS:
            raise ValueError(f"{tokens} tokens are more than the core takes at once; give it at most {MOST_TOKENS}")
        group = columns if group is None else group
        if columns % STEP_COLUMNS or not 1 <= group <= columns or columns % group:
            raise ValueError(f"tokens have {columns} columns, which are no multiple of 4 and of the group, {group}")
        quantised = Activations(
            np.empty((tokens, columns), dtype=np.int8),
            np.empty(tokens, dtype=np.float32),
            np.empty((tokens, columns // group), dtype=np.int32),
        )
        self._library.oz_quantise(self._open(), address(x_TK), quantised.stored())
        return quantised

    def product(
        self,
        matrix: PackedMatrix,
        x: Activations,
        grouping: Grouping | None = None,
        output_TN: np.ndarray | None = None,
    ) -> np.ndarray:
        """x W^T, float32 (T, N): with the one matrix there is, or for a stack with the one `grouping` says.

        Tokens that `grouping` leaves out keep what `output_TN` holds (0 where it is not given). Raises ValueError
        where the arguments do not fit each other.
        """
        return self._multiply(self._library.oz_product, matrix, x, grouping, output_TN, matrix.rows)

    def product_swiglu(
        self,
        matrix: PackedMatrix,
        x: Activations,
        grouping: Grouping | None = None,
        output_TN: np.ndarray | None = None,
    ) -> np.ndarray:
        """silu(x gate^T) * (x up^T), float32 (T, N / 2), for a matrix whose blocks of rows are gate and up in turn.

        Otherwise as `product`.
        """
        if matrix.rows % (2 * matrix.block_rows):
            raise ValueError(
                f"the matrix has {matrix.rows} rows; gate and up in turn need a multiple of {2 * matrix.block_rows}"
            )
        return self._multiply(self._library.oz_product_swiglu, matrix, x, grouping, output_TN, matrix.rows // 2)

    def read_bandwidth(self, memory: np.ndarray) -> float:
        """Bytes a second of reading `memory` (contiguous) once with all threads: what products are measured against."""
        started = time.perf_counter()
        self._library.oz_read(self._open(), address(memory), memory.nbytes)
        return memory.nbytes / (time.perf_counter() - started)

    def _multiply(
        self,
        function: Callable[..., None],
        matrix: PackedMatrix,
        x: Activations,
        grouping: Grouping | None,
        output_TN: np.ndarray | None,
        width: int,
    ) -> np.ndarray:
        if (x.columns, x.group) != (matrix.columns, matrix.group):
            raise ValueError(
                f"tokens have {x.columns} columns in groups of {x.group}, the matrix {matrix.columns} in groups of "
                f"{matrix.group}; quantise them with the matrix's group"
            )
        if output_TN is None:
            output_TN = np.zeros((x.tokens, width), dtype=np.float32)
        elif output_TN.dtype != np.float32 or output_TN.shape != (x.tokens, width) or not output_TN.flags.c_contiguous:
            raise ValueError(
                f"the output is {output_TN.dtype} of shape {output_TN.shape}; it must be contiguous float32 of "
                f"{(x.tokens, width)}"
            )
        groups = None if grouping is None else _checked(grouping, matrix.experts, x.tokens)
        function(self._open(), matrix.stored(), x.stored(), groups, address(output_TN), width)
        return output_TN

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of `csrc/abi.h` with this core; nothing is checked."""
        getattr(self._library, function)(self._open(), *arguments)

    def size(self, function: str, *arguments: Any) -> int:
        """What a function of `csrc/abi.h` says of sizes, which needs no core."""
        return int(getattr(self._library, function)(*arguments))

    def _open(self) -> int:
        if self._core is None:
            raise ValueError("the core was closed; make a new one")
        return self._core


def address(array: np.ndarray) -> int:
    """Where a contiguous array begins."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def _checked(grouping: Grouping, experts: int, tokens: int) -> library.Grouping:
    places, ends_E = grouping.places, grouping.ends_E
    for name, array in (("places", places), ("ends", ends_E)):
        if array.dtype != np.int32 or array.ndim != 1 or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} of a grouping are {array.dtype} of shape {array.shape}; they must be int32 in a row"
            )
    if len(ends_E) != experts:
        raise ValueError(f"the grouping is for {len(ends_E)} matrices, but the stack has {experts}")
    if (np.diff(ends_E, prepend=0) < 0).any() or ends_E[-1] != len(places):
        raise ValueError(f"the ends of the grouping, {ends_E.tolist()}, do not rise to its {len(places)} places")
    if len(places) and not 0 <= places.min() <= places.max() < tokens:
        raise ValueError(f"the grouping names tokens {places.min()} to {places.max()}, but there are {tokens}")
    if len(places) and np.bincount(places).max() > 1:
        raise ValueError("the grouping names a token twice; its output could be either")
    return library.Grouping(address(places), address(ends_E))


# ---- how many threads ----


def _measured_threads(variant: str) -> int:
    """The number of threads, among powers of two and all cores, that multiplies fastest; fewer where it is a tie."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({cores, *(1 << power for power in range(cores.bit_length()) if 1 << power < cores)})
    if len(counts) == 1:
        return 1
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (512, 256, STEP_BYTES), dtype=np.uint8)  # 8 MB: 16,384 rows of 1,024 columns
    matrix = PackedMatrix(codes, np.ones((512, 8, 32), dtype=np.float16), 512 * 32)
    with ExitStack() as stack:
        cores_of = {count: stack.enter_context(Core(threads=count, variant=variant)) for count in counts}
        x = cores_of[1].quantise(random.standard_normal((4, matrix.columns), dtype=np.float32), matrix.group)
        best = dict.fromkeys(counts, math.inf)
        # In turn and for some time, so that another program's busy moment does not decide for the whole session.
        until, rounds = time.perf_counter() + _MEASURING_SECONDS, 0
        while rounds < _FEWEST_ROUNDS or time.perf_counter() < until:
            best = {count: min(best[count], _seconds(core, matrix, x)) for count, core in cores_of.items()}
            rounds += 1
    return _fewest({count: 1 / seconds for count, seconds in best.items()})


def _seconds(core: Core, matrix: PackedMatrix, x: Activations) -> float:
    started = time.perf_counter()
    core.product(matrix, x)
    return time.perf_counter() - started


def _fewest(rates: dict[int, float], tie: float = 0.05) -> int:
    return min(count for count, rate in rates.items() if rate >= (1 - tie) * max(rates.values()))
