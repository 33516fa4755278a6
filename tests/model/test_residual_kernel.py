"""RMSNorm and residual scaling as Triton kernels: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from openzaya.model import kernels, residual_kernel  # noqa: E402
from openzaya.model.numerics import HF, REPORT  # noqa: E402
from openzaya.model.residual import ResidualScaling, RMSNorm  # noqa: E402
from triton_builds import shared_memory_of  # noqa: E402

HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
"""What the neighbours test; these kernels multiply no matrices."""


def norm(width: int, dtype: torch.dtype, numerics=HF):
    """A norm, and what goes into it: seven tokens."""
    torch.manual_seed(width)
    module = RMSNorm(width, 1e-3, numerics)
    torch.nn.init.normal_(module.weight, mean=1.0)
    return module.to(DEVICE, dtype), [torch.randn(1, 7, width, device=DEVICE, dtype=dtype)]


def scaling(width: int, dtype: torch.dtype):
    torch.manual_seed(width)
    module = ResidualScaling(width)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    output = torch.randn(1, 7, width, device=DEVICE, dtype=dtype)
    return module.to(DEVICE, dtype), [output, torch.randn(1, 7, width, device=DEVICE)]


def computed(module, inputs):
    """The output, and gradients of its weighted sum into inputs and weights."""
    inputs = [each.detach().requires_grad_() for each in inputs]
    output = module(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    return [output, *torch.autograd.grad(output, [*inputs, *module.parameters()], weights)]


@pytest.mark.parametrize("runs", [2, 256], ids=["long runs", "short runs"])
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("width", [1, 24, 100])
@pytest.mark.parametrize("build", [norm, scaling])
def test_outputs_and_gradients_are_those_of_the_torch_form_in_float64(build, width, dtype, runs, monkeypatch):
    monkeypatch.setattr(residual_kernel, "_RUNS", runs)
    module, inputs = build(width, dtype)
    monkeypatch.setattr(kernels, "has_kernels", lambda _x: True)
    found = computed(module, inputs)
    monkeypatch.setattr(kernels, "has_kernels", lambda _x: False)
    assert [each.dtype for each in found] == [each.dtype for each in computed(module, inputs)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for one, truth in zip(found, computed(module.double(), [each.double() for each in inputs])):
        torch.testing.assert_close(one.double(), truth.double(), rtol=tolerance, atol=10 * tolerance)


def test_the_reports_norm_is_the_same_kernel_and_rounds_once(monkeypatch):
    module, inputs = norm(24, HALF, REPORT)
    monkeypatch.setattr(kernels, "has_kernels", lambda _x: True)
    found = module(*inputs)
    monkeypatch.setattr(kernels, "has_kernels", lambda _x: False)
    torch.testing.assert_close(found, module(*inputs), rtol=1e-3, atol=1e-3)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from openzaya.model import residual_kernel as room

FLOAT = {"residual", "residual_gradient", "merged", "gradient", "sums"}
KINDS = dict.fromkeys(FLOAT, "*fp32") | {"tokens": "i32", "each": "i32", "epsilon": "fp32"}
SIZES = {"WIDTH": 2048, "FILLED": 2048}
for target in [GPUTarget("cuda", 89, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]:
    for kernel in (room._norm, room._norm_gradient, room._scaling, room._scaling_gradient):
        signature = {name: "constexpr" if name in SIZES else KINDS.get(name, "*bf16") for name in kernel.arg_names}
        built = triton.compile(ASTSource(kernel, signature, SIZES), target=target, options={"num_warps": room._WARPS})
        print(target.arch, kernel, built.metadata.shared)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_cuda_and_rocm_within_their_shared_memory(tmp_path):
    shared = shared_memory_of(COMPILE, tmp_path)
    assert len(shared) == 12
    assert max(shared) <= 64 * 1024
