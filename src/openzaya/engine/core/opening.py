"""From a container of quantised weights to what the compiled executor computes with."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

import numpy as np

from openzaya.engine.core.plan import QuantisedWeights
from openzaya.engine.core.products import PackedMatrix
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.matrices import plain_tensors


def weights_of(container: Container) -> QuantisedWeights:
    """The weights of `container`: matrices stay in its mapped file, everything else is copied to float32."""
    matrices = {}
    for name in container.matrices:
        matrix = container.matrix(name)
        matrices[name] = PackedMatrix(matrix.codes.numpy(), matrix.scales.numpy(), matrix.rows)
    _ask_for_large_pages(array for matrix in matrices.values() for array in (matrix.codes, matrix.scales))
    plain = {entry.native: container.tensor(entry.native).float().numpy() for entry in plain_tensors(container.config)}
    return QuantisedWeights(container.config, matrices, plain)


def _ask_for_large_pages(mapped: Iterable[np.ndarray]) -> None:
    """Have the system read the file in pages of megabytes, where it can: a step goes to other experts each time, and
    finding thousands of small pages anew takes a fourth of the time of reading them. What of the file is in memory
    already stays as it is."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for array in mapped:
        start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(start, array.ctypes.data + array.nbytes - start, mmap.MADV_HUGEPAGE)
