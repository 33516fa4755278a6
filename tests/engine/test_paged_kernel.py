"""Attention over pages as a Triton kernel: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from engine_models import SHAPES  # noqa: E402
from openzaya.engine.paged_kernel import LEAST_PAGES, PARTS, paged_attention  # noqa: E402
from openzaya.engine.state import PAGE, StatePool, pages_for  # noqa: E402
from openzaya.engine.static_step import StaticView  # noqa: E402
from triton_builds import shared_memory_of  # noqa: E402

pytestmark = pytest.mark.slow  # about a minute in the interpreter

HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
"""Triton's interpreter multiplies the bits of bfloat16 as if they were integers, and float16 takes the same way."""


def pool_of(config, lengths, dtype):
    """A pool with keys and values of rows of these lengths, one more token each, in pages out of order."""
    torch.manual_seed(0)
    pool = StatePool(config, memory=1 << 28, slots=len(lengths), dtype=dtype, device=DEVICE, filler=True)
    pages = [pages_for(length + 1) for length in lengths]
    order = np.random.default_rng(0).permutation(sum(pages)).astype(np.int32)
    tables = np.full((len(lengths), max(pages)), pool.pages, dtype=np.int32)
    for row, held in enumerate(np.split(order, np.cumsum(pages)[:-1])):
        tables[row, : len(held)] = held
    pool.keys[:, : sum(pages)].normal_()
    pool.values[:, : sum(pages)].normal_()
    return pool, torch.from_numpy(tables).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("shape", ["plain", "sliding", "wide heads", "one key head"])
def test_the_kernel_gives_the_attention_of_the_torch_form(shape, dtype):
    config = SHAPES[shape]
    lengths = [0, 1, 30, 31, 32, 100, LEAST_PAGES * PAGE, 300, 511]
    pool, tables = pool_of(config, lengths, dtype)
    there = torch.tensor(lengths, device=DEVICE)
    view = StaticView(pool, torch.zeros_like(there), there, tables, kernel=False)
    heads = config.num_key_value_heads
    query = torch.randn(
        len(lengths), heads, config.num_attention_heads // heads, config.head_dim, device=DEVICE, dtype=dtype
    )
    for layer in range(config.num_hidden_layers):
        found = paged_attention(query, pool.keys[layer], pool.values[layer], tables, there, config.window(layer))
        expected = view._attend(layer, query)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_long_row_is_cut_into_all_parts_and_a_row_computes_the_same_bits_in_any_batch():
    config = SHAPES["plain"].with_(max_position_embeddings=8192, num_hidden_layers=1)
    lengths = [PARTS * LEAST_PAGES * PAGE + 100, 3, 700]
    pool, tables = pool_of(config, lengths, torch.float32)
    query = torch.randn(3, 2, 2, config.head_dim, device=DEVICE)
    there = torch.tensor(lengths, device=DEVICE)
    together = paged_attention(query, pool.keys[0], pool.values[0], tables, there, None)
    view = StaticView(pool, torch.zeros_like(there), there, tables, kernel=False)
    torch.testing.assert_close(together, view._attend(0, query), rtol=1e-5, atol=1e-5)
    for row in range(3):
        one = slice(row, row + 1)
        alone = paged_attention(query[one], pool.keys[0], pool.values[0], tables[one], there[one], None)
        assert torch.equal(alone[0], together[row])


# ---- compiling, for which no GPU is needed ----

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from openzaya.engine import paged_kernel

SIZES = {"GROUP": 4, "CHANNELS": 128, "CHANNELS_FILLED": 128, "PAGE": 32, "PARTS": 32, "LEAST_PAGES": 4}
for target in [GPUTarget("cuda", 89, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]:
    for number in ("bf16", "fp32"):
        for window in (None, 4096):
            kept = {"lengths": "*i64", "mixed": "*fp32", "running": "*fp32"}
            part = {"q": number, "keys": number, "values": number}
            part = {name: "*" + kind for name, kind in part.items()} | {"tables": "*i32"} | kept
            part |= {"width": "i32", "scale": "fp32"}
            join = {name: kept[name] for name in ("mixed", "running", "lengths")} | {"output": "*" + number}
            for kernel, signature, group in ((paged_kernel._part, part, 16), (paged_kernel._join, join, 4)):
                constants = SIZES | {"GROUP_FILLED": group, "WINDOW": window}
                signature = signature | dict.fromkeys(constants, "constexpr")
                built = triton.compile(ASTSource(kernel, signature, constants), target=target)
                print(target.arch, number, window, built.metadata.shared)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_cuda_and_rocm_within_their_shared_memory(tmp_path):
    shared = shared_memory_of(COMPILE, tmp_path)
    assert len(shared) == 24
    assert max(shared) <= 64 * 1024
