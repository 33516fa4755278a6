"""The Triton kernel against the torch form: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from openzaya.model.quantised.packed_product import packed_product
from openzaya.model.quantised.packing import QuantisedMatrix, quantise
from openzaya.model.quantised.scheme import SCHEMES, W4_GROUP_32, W4_GROUP_128, W8, Scheme

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from openzaya.model.quantised.packed_kernel import kernel_product  # noqa: E402
from triton_builds import shared_memory_of  # noqa: E402

pytestmark = pytest.mark.slow  # about a minute in the interpreter

HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
"""Triton's interpreter multiplies the bits of bfloat16 as if they were integers, and float16 takes the same way."""
DTYPES = [torch.float32, HALF]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stack_of(seed: int, scheme: Scheme, experts: int, rows: int, columns: int, interleaved: bool) -> QuantisedMatrix:
    each = [quantise(weight, scheme, interleaved=interleaved) for weight in draw(seed, experts, rows, columns)]
    codes, scales = (torch.stack(parts) for parts in zip(*((one.codes, one.scales) for one in each)))
    return QuantisedMatrix(codes, scales, scheme, rows, interleaved)


def by_kernel(x: torch.Tensor, matrix: QuantisedMatrix, ends: torch.Tensor | None = None) -> torch.Tensor:
    there = QuantisedMatrix(
        matrix.codes.to(DEVICE), matrix.scales.to(DEVICE), matrix.scheme, matrix.rows, matrix.interleaved
    )
    return kernel_product(x.to(DEVICE), there, None if ends is None else ends.to(DEVICE)).cpu()


def check(x: torch.Tensor, matrix: QuantisedMatrix, ends: torch.Tensor | None = None) -> None:
    found, expected = by_kernel(x, matrix, ends), packed_product(x, matrix, ends)
    assert found.dtype == x.dtype
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17, 70])
def test_any_number_of_tokens(tokens, scheme, dtype):
    check(draw(tokens, tokens, 256).to(dtype), quantise(draw(1, 100, 256), scheme))


@pytest.mark.parametrize("tokens", [1, 3, 66])
@pytest.mark.parametrize("rows", [1, 16, 31, 33, 130, 257])
@pytest.mark.parametrize(("scheme", "columns"), [(W4_GROUP_32, 96), (W4_GROUP_128, 384), (W8, 4), (W8, 132)], ids=str)
def test_rows_that_fill_no_block_and_columns_that_fill_no_tile(scheme, columns, rows, tokens):
    check(draw(0, tokens, columns), quantise(draw(rows, rows, columns), scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "counts",
    [[0, 1, 0], [1, 0], [0, 0, 5], [3, 0, 0, 17, 1], [16, 16], [64, 0, 65, 3], [0, 130, 0], [2, 1, 1, 1, 1, 1, 1]],
    ids=str,
)
def test_tokens_of_every_expert_wherever_they_end(counts, interleaved, scheme):
    rows, columns = (4 * scheme.block if interleaved else 50), 128
    matrix = stack_of(2, scheme, len(counts), rows, columns, interleaved)
    check(draw(3, sum(counts), columns), matrix, torch.tensor(counts).cumsum(0).to(torch.int32))


def test_grouped_tokens_in_sixteen_bits():
    matrix = stack_of(4, W4_GROUP_32, 4, 128, 64, True)
    check(draw(5, 40, 64).to(HALF), matrix, torch.tensor([7, 7, 38, 40], dtype=torch.int32))


def test_activations_need_not_be_contiguous():
    check(draw(6, 128, 5).T, quantise(draw(7, 40, 128), W4_GROUP_32))


def test_extreme_codes_keep_their_signs():
    weight = draw(8, 64, 128).sign() * 3
    for scheme in SCHEMES:
        check(torch.eye(128), quantise(weight, scheme))


# ---- compiling, for which no GPU is needed ----

COMPILE = """
import itertools, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from openzaya.model.quantised import packed_kernel

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
CONSTANTS = {"EXPERTS": 16, "EXPERTS_FILLED_UP": 16, "INTERLEAVED": True, "LANES": 16}
TARGETS = [GPUTarget("cuda", 89, 32), GPUTarget("hip", "gfx942", 64)]
for target, tokens, dtype, steps in itertools.product(TARGETS, [1, 16, 2000], NAMES, [8, None]):
    constants = CONSTANTS | packed_kernel.choose_tiling(tokens, 16, dtype) | {"GROUP_STEPS": steps}
    signature = {"x": "*" + NAMES[dtype], "words": "*i32", "scales": "*fp16" if steps else "*fp32", "ends": "*i32"}
    signature |= {"output": "*" + NAMES[dtype]} | dict.fromkeys(["tokens", "rows", "blocks", "steps"], "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    kernel = triton.compile(ASTSource(packed_kernel._kernel, signature, constants), target=target)
    print(target.arch, tokens, kernel.metadata.shared)
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_cuda_and_rocm_within_their_shared_memory(tmp_path):
    shared = shared_memory_of(COMPILE, tmp_path)
    assert len(shared) == 24
    assert 0 < max(shared) <= 64 * 1024
