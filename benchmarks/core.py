"""Products of the compiled core beside a plain read of the same memory with the same threads, in one run.

    python benchmarks/core.py [--rows 4096] [--columns 2048] [--tokens 1 4 16 64] [--threads N] [--competing 1]

Prints one JSON object. `read_ratio` is the rate at which a product reads its weights over that of the probe
that ran just before it, medians of both; `--competing` starts that many busy processes for a second round. Matrices are
cycled over --megabytes of weights, so that none is in a cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from openzaya.engine.core.products import Core, PackedMatrix, supported_variants

SCHEMES = {"w4 g32": (4, 32), "w4 g128": (4, 128), "w8": (8, 0)}


def main() -> None:
    arguments = read_arguments()
    rounds: list[dict[str, Any]] = []
    with Core(threads=arguments.threads, variant=arguments.variant) as core:
        for competing in sorted({0, arguments.competing}):
            with busy_processes(competing):
                for name in arguments.schemes:
                    stacks = matrices(name, arguments)
                    for tokens in arguments.tokens:
                        row = measured(core, stacks, tokens, arguments.repeats)
                        rounds.append({"competing": competing, "scheme": name, "tokens": tokens, **row})
        settings = {**vars(arguments), "threads": core.threads, "variant": core.variant}
    machine = {"processor": platform.processor() or platform.machine(), "variants": supported_variants()}
    print(json.dumps({"benchmark": "core", "settings": settings, "machine": machine, "rows": rounds}, indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--megabytes", type=int, default=256, help="weights that are cycled over")
    parser.add_argument("--threads", type=int, default=None, help="measured where not given")
    parser.add_argument("--variant", default=None, help="an instruction set; the best where not given")
    parser.add_argument("--competing", type=int, default=0, help="busy processes of the second round")
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def matrices(name: str, arguments: argparse.Namespace) -> list[PackedMatrix]:
    """Random matrices of one shape that together are larger than any cache."""
    bits, group = SCHEMES[name]
    random = np.random.default_rng(0)
    block, columns = (32, arguments.columns) if bits == 4 else (16, arguments.columns)
    shape = (-(-arguments.rows // block), columns // 4, 64)
    scales_shape = (shape[0], columns // group, 32) if bits == 4 else (shape[0], 16)
    codes_type, scales_type = (np.uint8, np.float16) if bits == 4 else (np.int8, np.float32)
    count = max(2, (arguments.megabytes << 20) // int(np.prod(shape)))
    return [
        PackedMatrix(
            random.integers(0, 256, shape, dtype=np.uint8).view(codes_type),
            np.full(scales_shape, 0.01, dtype=scales_type),
            arguments.rows,
        )
        for _ in range(count)
    ]


def measured(core: Core, stack: list[PackedMatrix], tokens: int, repeats: int) -> dict[str, float]:
    matrix = stack[0]
    x = core.quantise(
        np.random.default_rng(1).standard_normal((tokens, matrix.columns), dtype=np.float32), matrix.group
    )
    output_TN = np.empty((tokens, matrix.rows), dtype=np.float32)
    size = sum(each.nbytes for each in stack)
    multiply_adds = tokens * matrix.rows * matrix.columns * len(stack)
    reads, rates = [], []
    for _ in range(repeats):
        seconds = sum(each.codes.nbytes / core.read_bandwidth(each.codes) for each in stack)
        reads.append(sum(each.codes.nbytes for each in stack) / seconds)
        started = time.perf_counter()
        for each in stack:
            core.product(each, x, output_TN=output_TN)
        rates.append(size / (time.perf_counter() - started))
    rate, read = statistics.median(rates), statistics.median(reads)
    return {
        "read_gigabytes": round(read / 1e9, 2),
        "weights_gigabytes": round(rate / 1e9, 2),
        "read_ratio": round(rate / read, 3),
        "giga_multiply_adds": round(multiply_adds / (size / rate) / 1e9, 1),
    }


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
