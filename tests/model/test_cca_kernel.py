"""Between projections and attention of CCA as Triton kernels: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import random

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from openzaya.model import cca_gradients, cca_kernel, kernels  # noqa: E402
from openzaya.model.attention import Attention  # noqa: E402
from openzaya.model.cache import DecodeCache  # noqa: E402
from openzaya.model.config import ZayaConfig  # noqa: E402
from openzaya.model.numerics import HF, REPORT  # noqa: E402
from openzaya.model.placement import Placement, place  # noqa: E402
from openzaya.train.recompute import checkpoint_blocks  # noqa: E402
from triton_builds import shared_memory_of  # noqa: E402

pytestmark = pytest.mark.slow  # about a minute in the interpreter

HALF = torch.float16 if DEVICE == "cpu" else torch.bfloat16
"""Triton's interpreter multiplies the bits of bfloat16 as if they were integers, and float16 takes the same way."""
ROWS = 2


@pytest.fixture
def kernel(monkeypatch):
    """`kernel(True)` has every forward from then on take the kernels, `kernel(False)` the torch form."""
    return lambda forced: monkeypatch.setattr(kernels, "has_kernels", lambda _x: forced)


@pytest.fixture
def draw(draw_config):
    """`draw(seed)`: an attention with random weights, inputs of any length and their documents."""

    def drawn(seed: int, length: int | None = None, **fixed) -> tuple[Attention, torch.Tensor, torch.Tensor]:
        source = random.Random(seed)
        config = draw_config(300 + seed, num_hidden_layers=1, **fixed)
        torch.manual_seed(seed)
        module = Attention(config, 0, HF)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        length = length or source.randint(9, 20)
        starts = torch.rand(ROWS, length) < 0.3
        return (
            module.to(DEVICE),
            torch.randn(ROWS, length, config.hidden_size, device=DEVICE),
            starts.cumsum(1).to(DEVICE),
        )

    return drawn


def placed(config: ZayaConfig, x: torch.Tensor, documents: torch.Tensor | None, context=None) -> Placement:
    ids = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    return place(config, ids, None, documents, None, context)


def outputs_of(module: Attention, x: torch.Tensor, placement: Placement) -> list[torch.Tensor]:
    return list(module._queries_keys_values(x, placement, None))


def gradients_of(module: Attention, x: torch.Tensor, outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a random mixture of the outputs: into the input, and into all weights but the output projection."""
    names, parameters = zip(*((name, each) for name, each in module.named_parameters() if "o_proj" not in name))
    generator = torch.Generator().manual_seed(0)
    mixture = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    found = torch.autograd.grad(outputs, [x, *parameters], mixture)
    return dict(zip(["x", *names], found))


def assert_close(found, expected, tolerance: float) -> None:
    for name, truth in expected.items():
        assert found[name].shape == truth.shape, name
        error = (found[name].double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-3)
        assert error <= tolerance, f"{name}: {error:.1e}"


def named(outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(("queries", "keys", "values"), outputs))


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3])
def test_outputs_and_gradients_are_those_of_the_torch_form_in_float64(seed, packed, draw, kernel):
    module, x, documents = draw(seed)
    placement = placed(module.qkv_proj.config, x, documents if packed else None)
    x.requires_grad_()
    kernel(True)
    found = outputs_of(module, x, placement)
    found_gradients = gradients_of(module, x, found)
    kernel(False)
    module, x = module.double(), x.detach().double().requires_grad_()
    expected = outputs_of(module, x, placement)
    assert_close(named(found), named(expected), 1e-5)
    assert_close(found_gradients, gradients_of(module, x, expected), 1e-5)


@pytest.mark.parametrize(
    "few", [pytest.param(16, id="many tokens"), pytest.param(256, id="few tokens", marks=pytest.mark.slow)]
)
def test_tokens_of_several_tiles_and_parts_in_channels_of_several_steps(few, draw, kernel, monkeypatch):
    monkeypatch.setattr(cca_kernel, "_FEW_TOKENS", few)
    monkeypatch.setattr(cca_gradients, "_LEAST_PART", 20)
    module, x, documents = draw(
        5, length=35, head_dim=40, num_key_value_heads=1, num_attention_heads=2, cca_time0=2, cca_time1=2
    )
    placement = placed(module.qkv_proj.config, x, documents)
    x.requires_grad_()
    kernel(True)
    found = outputs_of(module, x, placement)
    gradients, again = gradients_of(module, x, found), gradients_of(module, x, outputs_of(module, x, placement))
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    kernel(False)
    module, x = module.double(), x.detach().double().requires_grad_()
    expected = outputs_of(module, x, placement)
    assert_close(named(found), named(expected), 1e-5)
    assert_close(gradients, gradients_of(module, x, expected), 1e-5)


@pytest.mark.parametrize("numerics", [HF, REPORT], ids=["hf", "report"])
def test_in_sixteen_bits_the_kernels_are_as_near_to_the_truth_as_the_torch_form(numerics, draw, kernel):
    module, x, documents = draw(6, length=20)
    module.qkv_proj.numerics = module.qk_norm.numerics = numerics
    module, x = module.to(HALF), x.to(HALF).requires_grad_()
    placement = placed(module.qkv_proj.config, x, documents)
    results = {}
    for forced in (True, False):
        kernel(forced)
        outputs = outputs_of(module, x, placement)
        results[forced] = named(outputs) | gradients_of(module, x, outputs)
        assert {output.dtype for output in results[forced].values()} == {HALF}
    module, x = module.double(), x.detach().double().requires_grad_()
    expected = outputs_of(module, x, placement)
    truth = named(expected) | gradients_of(module, x, expected)
    assert_close(results[True], truth, 1e-2)
    for name, exact in truth.items():
        errors = [float((results[forced][name].double() - exact).norm() / exact.norm()) for forced in (True, False)]
        assert errors[0] <= 2 * errors[1] + 1e-4, f"{name}: {errors}"


def test_vectors_shorter_than_epsilon_and_temperatures_of_zero_have_the_gradients_of_the_torch_form(draw, kernel):
    module, x, _documents = draw(7, length=6)
    with torch.no_grad():
        module.qk_norm.temp[0] = 0
        for convolution in (module.qkv_proj.conv_qk_depthwise, module.qkv_proj.conv_qk_grouped):
            convolution.bias.zero_()
        x[0] *= 1e-9
    placement = placed(module.qkv_proj.config, x, None)
    x.requires_grad_()
    results = {}
    for forced in (True, False):
        kernel(forced)
        outputs = outputs_of(module, x, placement)
        results[forced] = named(outputs) | gradients_of(module, x, outputs)
    assert_close(results[True], results[False], 1e-5)


class Halves:
    """The context of the second half of rows, whose first half has been computed here."""

    def __init__(self, columns_BPZ: torch.Tensor, before_BV: torch.Tensor) -> None:
        self.came = columns_BPZ, before_BV

    def part(self, length: int) -> slice:
        return slice(length // 2, length)

    def before(self, columns_BSZ, delayed_BSV, resets_BS):
        columns_BPZ, before_BV = self.came
        if resets_BS is not None:
            back = torch.arange(columns_BPZ.shape[1], 0, -1, device=columns_BPZ.device)
            columns_BPZ = torch.where((resets_BS[:, :1] >= back)[..., None], columns_BPZ, 0)
        return columns_BPZ, before_BV


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_columns_from_another_part_of_the_row_are_seen_and_get_their_gradients(seed, packed, draw, kernel):
    module, x, documents = draw(seed, length=14)
    config = module.qkv_proj.config
    first, second = x.chunk(2, dim=1)
    results = {}
    for forced in (True, False):
        kernel(False)
        before = first.clone().requires_grad_()
        q, k, _current, delayed = module.qkv_proj._parts(before)
        past = before.shape[1] - config.convolution_history
        context = Halves(torch.cat([q, k], dim=-1)[:, past:], delayed[:, -1])
        kernel(forced)
        outputs = outputs_of(module, second, placed(config, x, documents if packed else None, context))
        mixture = [torch.ones_like(output) * torch.arange(output.shape[-1], device=DEVICE) for output in outputs]
        gradient = torch.autograd.grad(outputs, before, mixture)[0]
        results[forced] = named(outputs) | {"before": gradient}
    assert_close(results[True], results[False], 1e-5)


@pytest.mark.parametrize("numerics", [HF, REPORT], ids=["hf", "report"])
@torch.no_grad()
def test_a_prompt_in_chunks_and_tokens_one_by_one_are_as_one_forward(numerics, draw_config, draw_model, kernel):
    config = draw_config(310, num_hidden_layers=2)
    model = draw_model(config, 0, numerics).to(DEVICE)
    ids = torch.randint(2, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    kernel(False)
    expected = model(ids)
    kernel(True)
    cache = DecodeCache(
        config, 2, numerics=numerics, device=DEVICE, padding=torch.zeros(2, dtype=torch.long, device=DEVICE)
    )
    begin, found = 0, []
    for length in (4, 1, 3, 1):
        found.append(model(ids[:, begin : begin + length], cache=cache))
        cache.advance(length)
        begin += length
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_with_packed_rows_learns_the_same_and_blocks_may_be_computed_again(draw_config, draw_model, kernel):
    config = draw_config(311, num_hidden_layers=1, head_dim=4, num_key_value_heads=2, num_attention_heads=2)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, config.vocab_size, (2, 9), generator=generator).to(DEVICE)
    documents = (torch.rand(2, 9, generator=generator) < 0.3).cumsum(1).to(DEVICE)
    results = []
    for forced, again in ((False, False), (True, False), (True, True)):
        kernel(forced)
        model = draw_model(config, 0).to(DEVICE).train()
        if again:
            checkpoint_blocks(model)
        model(ids, document_ids=documents).square().mean().backward()
        results.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    plain, fused, recomputed = results
    assert plain.keys() == fused.keys() == recomputed.keys()
    assert_close(fused, plain, 1e-4)
    assert all(torch.equal(fused[name], recomputed[name]) for name in fused)


def test_weights_that_do_not_learn_cost_nothing(draw, kernel, monkeypatch):
    module, x, _documents = draw(8, length=5)
    for part in (module.qkv_proj.conv_qk_depthwise, module.qkv_proj.conv_qk_grouped):
        part.requires_grad_(False)
    monkeypatch.setattr(cca_gradients, "_to_weights", lambda *_arguments: pytest.fail("computed"))
    kernel(True)
    sum(output.sum() for output in outputs_of(module, x, placed(module.qkv_proj.config, x, None))).backward()
    assert module.qkv_proj.q_proj.weight.grad is not None


def test_a_projection_with_a_part_left_out_keeps_the_torch_form(draw, kernel, monkeypatch):
    module, x, _documents = draw(1, length=4)
    placement = placed(module.qkv_proj.config, x, None)
    module.qkv_proj.is_whole = False
    monkeypatch.setattr(cca_gradients, "kernel_queries_keys_values", lambda *_arguments: pytest.fail("computed"))
    kernel(True)
    assert len(outputs_of(module, x, placement)) == 3


def test_a_cpu_and_float64_keep_the_torch_form():
    assert not kernels.has_kernels(torch.zeros(1))
    assert not kernels.has_kernels(torch.zeros(1, dtype=torch.float64, device=DEVICE))


# ---- compiling, for which no GPU is needed ----

COMPILE = """
import itertools, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from openzaya.model import cca_gradients, cca_kernel

SHAPE = {"HEADS": 8, "KEY_HEADS": 2, "CHANNELS": 128, "TURNED": 64, "TAPS0": 2, "TAPS1": 2, "PAIRS_FILLED": 64}
KERNELS = [cca_kernel._forward, cca_gradients._norm_gradient, cca_gradients._column_gradient, cca_gradients._products]
FLOAT = {"cosine", "sine", "temperature_gradient", "products", "sums"}
WHOLE = {"tokens", "length", "places", "part", "q_row", "k_row", "current_row", "delayed_row"}
TARGETS = [GPUTarget("cuda", 89, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]
for target, (dtype, tokens) in itertools.product(TARGETS, [(torch.bfloat16, 4096), (torch.float32, 64)]):
    number = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    tile = cca_kernel.tile_of(tokens, dtype)
    for kernel in KERNELS:
        known = SHAPE | tile | {"TAPS_LAST": tokens == 64} | {"CHANNELS_FILLED": 128}
        constants = {name: known[name] for name in kernel.arg_names if name in known}
        kinds = {"resets": "*i64", "epsilon": "fp32"} | dict.fromkeys(FLOAT, "*fp32") | dict.fromkeys(WHOLE, "i32")
        signature = {name: "constexpr" if name in known else kinds.get(name, number) for name in kernel.arg_names}
        divisible = [name for name, kind in signature.items() if kind[0] == "*" or name.endswith("_row")]
        attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
        source = ASTSource(kernel, signature, constants, attributes)
        built = triton.compile(source, target=target, options=cca_kernel.options_of(tokens))
        print(target.arch, number, tokens, kernel, built.metadata.shared)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_cuda_and_rocm_within_their_shared_memory(tmp_path):
    shared = shared_memory_of(COMPILE, tmp_path)
    assert len(shared) == 24
    assert max(shared) <= 64 * 1024
