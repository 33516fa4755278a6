"""Products by expert as a Triton kernel: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from openzaya.model.grouped_kernel import kernel_grouped_product  # noqa: E402
from triton_builds import shared_memory_of  # noqa: E402

HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
"""Triton's interpreter multiplies the bits of bfloat16 as if they were integers, and float16 takes the same way."""


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("counts", [[0, 1, 0], [1, 0, 1], [3, 0, 0, 17, 1], [16, 33]], ids=str)
def test_each_token_is_multiplied_with_its_experts_matrix(counts, dtype):
    generator = torch.Generator().manual_seed(sum(counts))
    x = torch.randn(sum(counts), 136, generator=generator).to(DEVICE, dtype)
    weight = torch.randn(len(counts), 50, 136, generator=generator).to(DEVICE, dtype)
    ends = torch.tensor(counts, device=DEVICE).cumsum(0).to(torch.int32)
    expected = torch.cat([rows.float() @ matrix.float().T for rows, matrix in zip(x.split(counts), weight)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        kernel_grouped_product(x, weight, ends).float(), expected, rtol=tolerance, atol=10 * tolerance
    )


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from openzaya.model import grouped_kernel

for target in [GPUTarget("cuda", 89, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]:
    for number in ("*bf16", "*fp32"):
        for tokens in (1, 16):
            constants = {"EXPERTS": 16, "EXPERTS_FILLED_UP": 16, "TILE_TOKENS": tokens}
            constants |= {"TILE_ROWS": 32, "TILE_COLUMNS": 128}
            signature = {"x": number, "weight": number, "ends": "*i32", "output": number, "rows": "i32"}
            signature |= {"columns": "i32"} | dict.fromkeys(constants, "constexpr")
            kernel = triton.compile(ASTSource(grouped_kernel._kernel, signature, constants), target=target)
            print(target.arch, number, tokens, kernel.metadata.shared)
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_cuda_and_rocm_within_their_shared_memory(tmp_path):
    shared = shared_memory_of(COMPILE, tmp_path)
    assert len(shared) == 12
    assert max(shared) <= 64 * 1024
