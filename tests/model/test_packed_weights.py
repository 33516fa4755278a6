"""Packed weights in torch: products and rows of a matrix that is never dequantised whole, and models made of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openzaya.model.cache import DecodeCache
from openzaya.model.checkpoint import load_model, save_model
from openzaya.model.quantised import packed_product as products
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.matrices import container_bytes
from openzaya.model.quantised.packed_product import packed_product, packed_rows, require_kernel
from openzaya.model.quantised.packed_weight import PackedWeight
from openzaya.model.quantised.packing import QuantisedMatrix, dequantise, quantise
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import SCHEMES, W4_GROUP_32, W4_GROUP_128, W8
from openzaya.model.router import Routing

SHAPE = {
    "vocab_size": 100, "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
    "moe_intermediate_size": 128,
}  # fmt: skip
schemes = st.sampled_from(SCHEMES)
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=25, deadline=None)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stack_of(seed: int, scheme, experts: int, rows: int, columns: int, interleaved: bool):
    """A stack of quantised matrices, and their dequantised weights (E, N, K)."""
    each = [quantise(weight, scheme, interleaved=interleaved) for weight in draw(seed, experts, rows, columns)]
    codes, scales = (torch.stack(parts) for parts in zip(*((one.codes, one.scales) for one in each)))
    whole = QuantisedMatrix(codes, scales, scheme, rows, interleaved)
    return whole, torch.stack([dequantise(one) for one in each])


@pytest.fixture
def folder_of(draw_config, draw_model, tmp_path):
    """`folder_of(seed, scheme)`: a quantised folder of a random model."""

    def make(seed: int, scheme, **fixed) -> Path:
        model = draw_model(draw_config(seed, **{**SHAPE, **fixed}), seed=seed)
        save_model(model, tmp_path / f"plain-{seed}")
        quantise_checkpoint(tmp_path / f"plain-{seed}", tmp_path / f"{seed}-{scheme}", scheme)
        return tmp_path / f"{seed}-{scheme}"

    return make


# ---- products ----


@given(seeds, schemes, st.integers(0, 5), st.integers(1, 150), st.integers(1, 5), st.sampled_from([1, 5_000, 1 << 20]))
@examples
def test_a_packed_product_is_the_product_with_the_dequantised_matrix(seed, scheme, tokens, rows, units, chunk):
    columns = units * (scheme.group or 4)
    matrix, x = quantise(draw(seed, rows, columns), scheme), draw(seed + 1, tokens, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_CHUNK_ELEMENTS", chunk)
        found = packed_product(x, matrix)
    torch.testing.assert_close(found, x @ dequantise(matrix).T, rtol=1e-5, atol=1e-4)


@given(seeds, schemes, st.lists(st.sampled_from([0, 0, 1, 2, 7]), min_size=1, max_size=6), st.booleans())
@examples
def test_a_grouped_product_takes_the_matrix_of_each_tokens_expert(seed, scheme, counts, interleaved):
    rows, columns = (4 * scheme.block, 256) if interleaved else (50, 128)
    matrix, weight_ENK = stack_of(seed, scheme, len(counts), rows, columns, interleaved)
    x, ends = draw(seed + 1, sum(counts), columns), torch.tensor(counts).cumsum(0).to(torch.int32)
    expected = [part @ weight.T for part, weight in zip(x.split(counts), weight_ENK)]
    torch.testing.assert_close(packed_product(x, matrix, ends), torch.cat(expected), rtol=1e-5, atol=1e-4)


@given(seeds, schemes, st.integers(1, 150), st.integers(1, 5), st.sampled_from([(), (3,), (2, 5)]))
@examples
def test_the_rows_of_an_embedding_are_those_of_the_dequantised_matrix(seed, scheme, rows, units, shape):
    matrix = quantise(draw(seed, rows, units * (scheme.group or 4)), scheme)
    ids = torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(packed_rows(ids, matrix, torch.float32), dequantise(matrix)[ids])
    assert torch.equal(packed_rows(ids, matrix, torch.bfloat16), dequantise(matrix)[ids].bfloat16())


@pytest.mark.parametrize("id", [-1, 40])
def test_an_id_beyond_the_rows_is_refused(id):
    with pytest.raises(IndexError, match="there are 40"):
        packed_rows(torch.tensor([3, id]), quantise(draw(0, 40, 32), W4_GROUP_32), torch.float32)


def test_bfloat16_activations_meet_weights_rounded_to_bfloat16():
    matrix, x = quantise(draw(0, 70, 64), W4_GROUP_32), draw(1, 5, 64).bfloat16()
    found = packed_product(x, matrix)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, x @ dequantise(matrix).bfloat16().T)


# ---- models ----


@pytest.mark.parametrize("seed", range(500, 506))
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_packed_model_gives_the_logits_of_the_dequantised_one(folder_of, relative_error, scheme, seed):
    folder = folder_of(seed, scheme, num_experts=seed % 4 + 2, tie_word_embeddings=seed % 2 == 0)
    plain, packed = load_model(folder), load_model(folder, packed=True)
    ids = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        routing = Routing()
        expected = plain(ids, mask, routing=routing)
        skip = plain.config.num_experts
        chosen = Routing()
        found = packed(ids, mask, routing=chosen)
    assert [a.tolist() for a in chosen.chosen] == [a.tolist() for a in routing.chosen]
    assert all((each <= skip).all() for each in chosen.chosen)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("semantics", ["zero", "identity"])
def test_tokens_that_skip_and_experts_without_tokens_are_as_in_the_dequantised_model(
    folder_of, relative_error, semantics
):
    folder = folder_of(510, W4_GROUP_32, num_experts=5, num_hidden_layers=2)
    plain = load_model(folder, skip_semantics=semantics)
    packed = load_model(folder, skip_semantics=semantics, packed=True)
    ids = torch.arange(8)[None]
    forced = [torch.tensor([5, 1, 1, 5, 4, 1, 5, 4]), torch.full((8,), 5)]
    with torch.no_grad():
        expected, found = (model(ids, routing=Routing(forced=forced)) for model in (plain, packed))
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("numerics", ["hf", "report"])
def test_a_packed_model_in_bfloat16_is_off_by_no_more_than_roundings(folder_of, relative_error, numerics):
    folder = folder_of(511, W4_GROUP_128, num_experts=3, num_hidden_layers=2)
    plain = load_model(folder, dtype="bfloat16", numerics=numerics)
    packed = load_model(folder, dtype="bfloat16", numerics=numerics, packed=True)
    exact = load_model(folder)
    ids, routing = torch.arange(10)[None], Routing()
    with torch.no_grad():
        truth = exact(ids, routing=routing)
        expected, found = (model(ids, routing=Routing(forced=routing.chosen)) for model in (plain, packed))
    assert found.dtype == torch.float32
    assert packed.model.layers[0].mlp.gate.balancing_biases.dtype == torch.float32
    assert relative_error(found, truth) < 1.5 * relative_error(expected, truth)


def test_a_packed_model_decodes_what_its_whole_forward_says(folder_of, relative_error):
    packed = load_model(folder_of(512, W8, num_hidden_layers=2), packed=True)
    ids, cache = torch.arange(9)[None], DecodeCache(packed.config, 1, capacity=9)
    with torch.no_grad():
        whole = packed(ids)[:, -1]
    packed.decode(ids[:, :5], cache)
    for place in range(5, 8):
        packed.decode(ids[:, place : place + 1], cache)
    assert relative_error(packed.decode(ids[:, 8:], cache), whole) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_packed_model_holds_the_tensors_of_its_container_and_nothing_else(folder_of, scheme, tied):
    folder = folder_of(520, scheme, tie_word_embeddings=tied)
    packed, container = load_model(folder, packed=True), Container(folder)
    held = packed.state_dict()
    assert all(torch.equal(tensor, container.tensor(name)) for name, tensor in held.items())
    assert sum(tensor.nbytes for tensor in held.values()) == container_bytes(container.config, scheme, 4)
    assert set(held) == container.header.hashes.keys()
    everything = [*packed.parameters(), *packed.buffers()]
    assert sum(tensor.nbytes for tensor in everything) == sum(tensor.nbytes for tensor in held.values())
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in everything)


def test_a_packed_weight_is_moved_and_cast_without_a_change_of_its_numbers(folder_of):
    folder = folder_of(521, W4_GROUP_32)
    packed = load_model(folder, packed=True)
    weight = packed.model.embed_tokens.weight
    assert isinstance(weight, PackedWeight)
    before = weight.codes.clone(), weight.scales.clone()
    packed.bfloat16()
    assert weight.dtype == packed.model.norm.weight.dtype == torch.bfloat16
    assert weight.scales.dtype == torch.float16
    assert torch.equal(weight.codes, before[0])
    assert torch.equal(weight.scales, before[1])
    with torch.no_grad():
        embedded = packed.model.embed_tokens(torch.tensor([7]))
    assert torch.equal(embedded, load_model(folder, dtype="bfloat16").model.embed_tokens.weight[[7]])
    assert weight.to("meta").device.type == "meta"


# ---- refusals ----


def test_only_a_quantised_folder_is_loaded_packed(draw_config, draw_model, tmp_path):
    save_model(draw_model(draw_config(530)), tmp_path / "m")
    with pytest.raises(ValueError, match="is not quantised, so there is nothing packed in it"):
        load_model(tmp_path / "m", packed=True)


def test_a_packed_model_is_not_saved(folder_of, tmp_path):
    with pytest.raises(ValueError, match="`convert` the folder"):
        save_model(load_model(folder_of(531, W8), packed=True), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_gpu_without_triton_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    require_kernel(torch.device("cpu"))
    with pytest.raises(ValueError, match="pip install triton"):
        require_kernel(torch.device("cuda"))


def test_a_model_is_not_begun_on_a_gpu_without_triton(folder_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("openzaya.model.checkpoint.usable_device", torch.device)
    with pytest.raises(ValueError, match="pip install triton"):
        load_model(folder_of(533, W8), device="cuda", packed=True)


def test_what_a_packed_weight_cannot_do_is_refused(folder_of):
    weight = load_model(folder_of(532, W8), packed=True).model.embed_tokens.weight
    with pytest.raises(TypeError):
        torch.nn.functional.linear(torch.ones(1, 128), weight, torch.ones(100))
    with pytest.raises(TypeError):
        torch.nn.functional.conv1d(torch.ones(1, 128, 4), weight)
