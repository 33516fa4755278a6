"""Which bits a quantised matrix is kept in, and what shapes its two tensors then have. Arithmetic only, no torch.

N rows, K columns of a matrix W whose product is x W^T. A block is the rows that one step of the compiled product takes
together: 32 in w4, where a byte holds two rows, and 16 in w8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SchemeName = Literal["w4", "w8"]
GROUPS = (32, 128)
STEP_COLUMNS = 4
"""Columns that lie together for each row, because the dot products of processors take four bytes at a time."""
STEP_BYTES = 64
LANES = STEP_BYTES // STEP_COLUMNS
"""Rows that a step has four bytes each for."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """`w4`: 4 bits, one float16 scale a group of columns. `w8`: 8 bits, one float32 scale a row (`group` is None)."""

    name: SchemeName
    group: int | None

    @property
    def block(self) -> int:
        """Rows of a block."""
        return 32 if self.name == "w4" else 16

    @property
    def code_type(self) -> str:
        """As safetensors names it."""
        return "U8" if self.name == "w4" else "I8"

    @property
    def scale_type(self) -> str:
        return "F16" if self.name == "w4" else "F32"

    def blocks(self, rows: int) -> int:
        """Blocks of a matrix of so many rows; the last one is filled up with rows of zeros."""
        return -(-rows // self.block)

    def codes_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        return self.blocks(rows), columns // STEP_COLUMNS, STEP_BYTES

    def scales_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        if self.group is None:
            return self.blocks(rows), self.block
        return self.blocks(rows), columns // self.group, self.block

    def refusal(self, name: str, rows: int, columns: int, *, interleaved: bool = False) -> str | None:
        """Why the matrix `name` cannot be kept in this scheme, in one sentence; None where it can."""
        if self.group is not None and columns % self.group:
            return (
                f"{name} has {columns} columns, which groups of {self.group} do not divide; "
                f"use {'groups of 32 or ' if self.group > 32 and columns % 32 == 0 else ''}the scheme w8"
            )
        if columns % STEP_COLUMNS:
            return f"{name} has {columns} columns, not a multiple of {STEP_COLUMNS}; leave this model unquantised"
        if interleaved and rows % (2 * self.block):
            return (
                f"{name} has experts {rows // 2} wide, not a multiple of the {self.block} rows of a {self.name} block; "
                f"{'use the scheme w8 or ' if self.name == 'w4' and rows % 32 == 0 else ''}leave this model unquantised"
            )
        return None

    def __str__(self) -> str:
        return self.name if self.group is None else f"{self.name} in groups of {self.group}"


W4_GROUP_32, W4_GROUP_128, W8 = Scheme("w4", 32), Scheme("w4", 128), Scheme("w8", None)
SCHEMES = (W4_GROUP_32, W4_GROUP_128, W8)
DEFAULT_SCHEME = W4_GROUP_32
"""The finer of the two 4-bit schemes; `benchmarks/quantised.py` measures what each one costs in quality."""


def scheme_of(name: str, group: int | None = None) -> Scheme:
    """The scheme of this name, w4 with its default group where none is given; raises ValueError for any other."""
    if name not in ("w4", "w8"):
        raise ValueError(f"scheme is {name!r}; it is w4 or w8")
    if name == "w8" and group is not None:
        raise ValueError(f"group is {group}, but w8 has one scale a row; groups belong to w4")
    if name == "w4" and group is None:
        return DEFAULT_SCHEME if DEFAULT_SCHEME.name == "w4" else W4_GROUP_32
    for scheme in SCHEMES:
        if (scheme.name, scheme.group) == (name, group):
            return scheme
    raise ValueError(f"group is {group}; w4 has groups of {' or '.join(map(str, GROUPS))} columns")
