"""Rounding, packing and the reference product of a quantised matrix, over random shapes and values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openzaya.model.quantised.packing import (
    QuantisedMatrix,
    deinterleave,
    dequantise,
    interleave,
    pack_codes,
    pack_scales,
    quantise,
    unpack_codes,
    unpack_scales,
)
from openzaya.model.quantised.product import multiply
from openzaya.model.quantised.rounding import restore_weights, round_activations, round_weights
from openzaya.model.quantised.scheme import SCHEMES, W4_GROUP_32, W4_GROUP_128, W8, Scheme, scheme_of

schemes = st.sampled_from(SCHEMES)
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=15, deadline=None)


def draw_weights(seed: int, rows: int, columns: int) -> Tensor:
    """Values as weights have them: rows of different sizes, a few outliers, some zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10 ** torch.empty(rows, 1).uniform_(-3, 2, generator=generator)
    weight *= 1 + 20 * (torch.rand(rows, columns, generator=generator) < 0.01)
    return weight * (torch.rand(rows, columns, generator=generator) > 0.05)


def draw_codes(seed: int, rows: int, columns: int, scheme: Scheme) -> Tensor:
    low, high = (-8, 8) if scheme.name == "w4" else (-127, 128)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)


def matrix_columns(scheme: Scheme, units: int) -> int:
    return units * (scheme.group or 4)


# ---- rounding ----


@given(seeds, schemes, st.integers(1, 40), st.integers(1, 5))
@examples
def test_a_weight_is_off_by_half_a_step_unless_it_was_clipped(seed, scheme, rows, units):
    weight = draw_weights(seed, rows, matrix_columns(scheme, units))
    codes, scales = round_weights(weight, scheme)
    step = scales.float().reshape(rows, -1).abs().repeat_interleave(weight.shape[1] // (scales.numel() // rows), dim=1)
    error = (restore_weights(codes, scales, scheme) - weight).abs()
    inside = weight.abs() <= 7 * step if scheme.name == "w4" else torch.ones_like(step, dtype=torch.bool)
    assert bool((error <= step * 0.5001 + 2.0**-22)[inside].all())
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= (-8 if scheme.name == "w4" else -127)
    assert int(codes.max()) <= (7 if scheme.name == "w4" else 127)


@given(seeds, st.sampled_from([W4_GROUP_32, W4_GROUP_128]), st.integers(1, 20), st.integers(1, 4))
@examples
def test_the_search_is_never_worse_than_the_largest_weight_over_seven(seed, scheme, rows, units):
    weight = draw_weights(seed, rows, matrix_columns(scheme, units))
    groups = weight.unflatten(1, (-1, scheme.group))
    scale = groups.abs().amax(2, keepdim=True) / 7
    plain = (groups / scale.clamp_min(1e-30)).round().clamp(-8, 7) * scale
    ours = restore_weights(*round_weights(weight, scheme), scheme).unflatten(1, (-1, scheme.group))
    theirs = (plain - groups).square().sum(2)
    assert bool(((ours - groups).square().sum(2) <= theirs * 1.001 + 1e-6 * groups.square().sum(2)).all())


def test_on_weights_of_a_bell_curve_the_search_saves_a_quarter_of_the_error():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    scale = weight.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / 7
    plain = ((weight.unflatten(1, (-1, 32)) / scale).round() * scale).flatten(1)
    ours = restore_weights(*round_weights(weight, W4_GROUP_32), W4_GROUP_32)
    assert (ours - weight).square().sum() < 0.75 * (plain - weight).square().sum()


@given(seeds, schemes, st.integers(1, 40), st.integers(1, 4))
@examples
def test_weights_that_were_rounded_once_change_by_a_rounding_of_the_scale_at_most(seed, scheme, rows, units):
    once = restore_weights(*round_weights(draw_weights(seed, rows, matrix_columns(scheme, units)), scheme), scheme)
    again = restore_weights(*round_weights(once, scheme), scheme)
    # One outlier among zeros is as well 8 steps of one size as 6 of another, which float16 may not hold as exactly.
    assert torch.allclose(again, once, rtol=2.0**-10 if scheme.name == "w4" else 1e-6, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_stay_zeros_and_the_smallest_numbers_do_no_harm(scheme):
    weight = torch.zeros(3, 128)
    weight[1] = 1e-45
    weight[2, ::2] = -1e-30
    codes, scales = round_weights(weight, scheme)
    assert bool(restore_weights(codes, scales, scheme).isfinite().all())
    assert (restore_weights(codes, scales, scheme) - weight).abs().max() < 2.0**-22
    assert not codes[0].any()
    assert not scales[0].any()


@pytest.mark.parametrize(
    ("value", "scheme", "message"),
    [
        (float("nan"), W8, "a weight is not a finite number"),
        (float("-inf"), W4_GROUP_32, "a weight is not a finite number"),
        (-1e6, W4_GROUP_32, r"a weight is 1e\+06, too large for the float16 scales of w4; use the scheme w8"),
    ],
)
def test_a_weight_that_cannot_be_kept_is_named(value, scheme, message):
    weight = torch.ones(2, 32)
    weight[1, 3] = value
    with pytest.raises(ValueError, match=message):
        round_weights(weight, scheme)


@given(seeds, st.integers(1, 8), st.integers(1, 40))
@examples
def test_a_token_is_rounded_by_itself_to_127_steps_each_way(seed, tokens, columns):
    x = draw_weights(seed, tokens, columns)
    codes, scale = round_activations(x)
    largest = x.abs().amax(1)
    assert torch.equal(codes.abs().amax(1).int(), torch.where(largest > 0, 127, 0).int())
    assert bool(((codes * scale[:, None] - x).abs() <= 0.5001 * scale[:, None]).all())
    for token in range(tokens):
        alone_codes, alone_scale = round_activations(x[token : token + 1])
        assert torch.equal(alone_codes[0], codes[token])
        assert torch.equal(alone_scale[0], scale[token])


def test_a_token_of_zeros_has_the_scale_one():
    codes, scale = round_activations(torch.zeros(2, 8))
    assert scale.tolist() == [1.0, 1.0]
    assert not codes.any()


# ---- packing ----


@given(seeds, schemes, st.integers(1, 70), st.integers(1, 3))
@examples
def test_packing_is_undone_by_unpacking_and_fills_the_last_block_with_zeros(seed, scheme, rows, units):
    columns = matrix_columns(scheme, units)
    codes = draw_codes(seed, rows, columns, scheme)
    packed = pack_codes(codes, scheme)
    assert packed.shape == scheme.codes_shape(rows, columns)
    unpacked = unpack_codes(packed, scheme)
    assert torch.equal(unpacked[:rows], codes)
    assert not unpacked[rows:].any()
    scales = torch.rand(rows) if scheme.group is None else torch.rand(rows, units).half()
    packed_scales = pack_scales(scales, scheme)
    assert packed_scales.shape == scheme.scales_shape(rows, columns)
    assert torch.equal(unpack_scales(packed_scales, scheme)[:rows], scales)
    assert not unpack_scales(packed_scales, scheme)[rows:].any()


def test_a_w4_byte_holds_two_rows_sixteen_apart_at_the_place_that_the_layout_says():
    codes = draw_codes(1, 64, 64, W4_GROUP_32).numpy()
    packed = pack_codes(torch.from_numpy(codes), W4_GROUP_32).numpy()
    for block, step, row, column in np.ndindex(2, 16, 16, 4):
        byte = int(packed[block, step, 4 * row + column])
        assert (byte & 15) - 8 == codes[32 * block + row, 4 * step + column]
        assert (byte >> 4) - 8 == codes[32 * block + 16 + row, 4 * step + column]
    scales = torch.rand(64, 2).half()
    packed_scales = pack_scales(scales, W4_GROUP_32)
    assert all(packed_scales[b, g, r] == scales[32 * b + r, g] for b, g, r in np.ndindex(2, 2, 32))


def test_a_w8_byte_holds_one_row_at_the_place_that_the_layout_says():
    codes = draw_codes(1, 32, 12, W8).numpy()
    packed = pack_codes(torch.from_numpy(codes), W8).numpy()
    for block, step, row, column in np.ndindex(2, 3, 16, 4):
        assert packed[block, step, 4 * row + column] == codes[16 * block + row, 4 * step + column]


@given(seeds, schemes, st.integers(1, 3))
@examples
def test_gate_and_up_alternate_by_blocks_and_come_back_apart(seed, scheme, blocks):
    width, columns = blocks * scheme.block, matrix_columns(scheme, 1)
    weight = draw_weights(seed, 2 * width, columns)
    together = quantise(weight, scheme, interleaved=True)
    gate, up = quantise(weight[:width], scheme), quantise(weight[width:], scheme)
    for block in range(blocks):
        assert torch.equal(together.codes[2 * block], gate.codes[block])
        assert torch.equal(together.codes[2 * block + 1], up.codes[block])
        assert torch.equal(together.scales[2 * block], gate.scales[block])
        assert torch.equal(together.scales[2 * block + 1], up.scales[block])
    assert torch.equal(deinterleave(interleave(gate.codes.repeat(2, 1, 1))), gate.codes.repeat(2, 1, 1))
    assert torch.equal(dequantise(together), torch.cat([dequantise(gate), dequantise(up)]))


@given(seeds, schemes, st.integers(1, 70), st.integers(1, 3))
@examples
def test_a_quantised_matrix_stands_for_its_rounded_weights(seed, scheme, rows, units):
    weight = draw_weights(seed, rows, matrix_columns(scheme, units))
    expected = restore_weights(*round_weights(weight, scheme), scheme)
    assert torch.equal(dequantise(quantise(weight, scheme)), expected)


@pytest.mark.parametrize(
    ("rows", "columns", "scheme", "interleaved", "message"),
    [
        (32, 192, W4_GROUP_128, False, "192 columns, which groups of 128 do not divide; use groups of 32 or the sch"),
        (32, 40, W4_GROUP_32, False, "40 columns, which groups of 32 do not divide; use the scheme w8"),
        (32, 42, W8, False, "42 columns, not a multiple of 4; leave this model unquantised"),
        (96, 64, W4_GROUP_32, True, "experts 48 wide, not a multiple of the 32 rows of a w4 block; use the scheme w8"),
        (40, 64, W8, True, "experts 20 wide, not a multiple of the 16 rows of a w8 block; leave this"),
    ],
)
def test_a_shape_that_a_scheme_cannot_hold_is_refused_with_a_way_out(rows, columns, scheme, interleaved, message):
    with pytest.raises(ValueError, match=message):
        quantise(torch.ones(rows, columns), scheme, interleaved=interleaved)


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("w3", None, "scheme is 'w3'; it is w4 or w8"),
        ("w4", 64, "group is 64; w4 has groups of 32 or 128 columns"),
        ("w8", 32, "group is 32, but w8 has one scale a row"),
    ],
)
def test_an_unknown_scheme_is_refused(name, group, message):
    with pytest.raises(ValueError, match=message):
        scheme_of(name, group)


def test_the_expected_bytes_of_the_8b_head_come_out():
    assert W4_GROUP_128.codes_shape(262272, 2048) == (8196, 512, 64)
    assert W4_GROUP_128.scales_shape(262272, 2048) == (8196, 16, 32)
    assert W8.scales_shape(262272, 2048) == (16392, 16)


# ---- the product ----


def product_by_loops(x: Tensor, matrix: QuantisedMatrix) -> np.ndarray:
    """The contract spelled out, one number at a time in numpy's float32."""
    weight_codes = unpack_codes(matrix.codes, matrix.scheme).numpy()
    scales = unpack_scales(matrix.scales, matrix.scheme).float().numpy().reshape(len(weight_codes), -1)
    result = np.zeros((len(x), matrix.rows), np.float32)
    for token, row in np.ndindex(result.shape):
        values = x[token].numpy()
        scale = np.float32(np.abs(values).max() / np.float32(127)) or np.float32(1)
        codes = np.rint(values / scale).astype(np.int64)
        dots = (codes * weight_codes[row].astype(np.int64)).reshape(scales.shape[1], -1).sum(1)
        total = scales[row, 0] * np.float32(dots[0])
        for group in range(1, len(dots)):
            total = np.float32(total + np.float32(scales[row, group] * np.float32(dots[group])))
        result[token, row] = scale * total
    return result


@pytest.mark.parametrize("rows", [1, 20, 33])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_reference_product_is_the_contract_to_the_bit(scheme, rows):
    # Groups of very different sizes: where they are alike, the sums are exact in any order, having so few bits.
    columns = matrix_columns(scheme, 6)
    sizes = torch.tensor([3.0, 0.01, 7.0, 0.001, 0.3, 1.7]).repeat_interleave(columns // 6)
    matrix = quantise(draw_weights(rows, rows, columns) * sizes, scheme)
    x = draw_weights(rows + 1, 3, columns)
    assert np.array_equal(multiply(x, matrix).numpy(), product_by_loops(x, matrix))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_product_does_not_depend_on_the_rest_of_the_batch_or_of_the_matrix(scheme):
    weight, x = draw_weights(1, 64, 256), draw_weights(2, 9, 256)
    whole = multiply(x, quantise(weight, scheme))
    for token in range(9):
        assert torch.equal(multiply(x[token : token + 1], quantise(weight, scheme))[0], whole[token])
    assert torch.equal(multiply(x, quantise(weight[32:], scheme)), whole[:, 32:])


def test_a_product_of_eight_bits_is_close_to_the_floating_one(relative_error):
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(64, 512, generator=generator), torch.randn(8, 512, generator=generator)
    errors = [relative_error(multiply(x, quantise(weight, scheme)), x @ weight.T) for scheme in SCHEMES]
    assert errors[2] < 0.02
    assert 0.02 < errors[0] < errors[1] < 0.15
