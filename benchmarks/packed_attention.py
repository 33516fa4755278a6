"""Attention of packed rows on a CPU, forward and backward: ours in pieces, torch's fused one, and plain products.

    python benchmarks/packed_attention.py [--threads 2] [--repeats 7] [--save FILE]

Rows of random documents, about 8,200 tokens, heads as in `zaya1-tiny`. Times are of the process on its processors, so
that other work on the machine matters less; ratios of one round, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from openzaya.bench.figures import Figure, ratio
from openzaya.bench.record import machine, record, save
from openzaya.model.piecewise import PiecewiseAttention

HEADS, KEY_HEADS, CHANNELS = 4, 2, 32
CASES = ((23, 352, 120), (12, 704, 250), (6, 1408, 400))
"""Rows, their length, and the mean length of a document."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = {
        "unit": "seconds of processor time, forward and backward",
        "threads": arguments.threads,
        "cases": [
            measure(rows, length, document, dtype, arguments.repeats)
            for dtype in (torch.bfloat16, torch.float32)
            for rows, length, document in CASES
        ],
    }
    report = record("packed_attention", ["python", *sys.argv], {**figures, "machine": machine()})
    if arguments.save is not None:
        save(report, arguments.save)
    print(json.dumps(report, indent=2))


def measure(rows: int, length: int, document: int, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    begins = torch.rand(rows, length, generator=generator) < 1 / document
    numbers = begins.cumsum(dim=1)
    mask = (numbers[:, :, None] == numbers[:, None, :]).tril()[:, None]
    inputs = tuple(
        torch.randn(rows, length, heads, CHANNELS, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    upstream = torch.randn(rows, HEADS, length, CHANNELS, generator=generator).to(dtype)
    ways: dict[str, Callable[[], Tensor]] = {
        "pieces": lambda: PiecewiseAttention.apply(*inputs, mask),
        "fused": lambda: F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True),
        "products": lambda: by_products(*inputs, mask),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            began = time.process_time()
            torch.autograd.grad(way(), inputs, upstream)
            if repeat:
                took[name].append(time.process_time() - began)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "length": length,
        "mean_document": document,
        "seconds": {name: Figure.of(times).as_json() for name, times in took.items()},
        "pieces_times_faster_than": {name: ratio(took[name], took["pieces"]).as_json() for name in ways},
    }


def by_products(q_BHSC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask_B1SS: Tensor) -> Tensor:
    group = q_BHSC.shape[1] // k_BKSC.shape[1]
    k_BHSC, v_BHSC = k_BKSC.repeat_interleave(group, dim=1), v_BKSC.repeat_interleave(group, dim=1)
    scores = (q_BHSC * CHANNELS**-0.5) @ k_BHSC.transpose(-1, -2)
    return scores.masked_fill(~mask_B1SS, float("-inf")).softmax(dim=-1) @ v_BHSC


if __name__ == "__main__":
    main()
