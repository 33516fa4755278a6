"""Products of the compiled core, against numpy to the bit, in every variant that this machine runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core_reference as reference
from openzaya.engine.core.products import Core, Grouping, PackedMatrix, address

SCHEMES = [(4, 32), (4, 128), (8, 0)]


@pytest.fixture(scope="module", params=reference.VARIANTS)
def core(request, variants):
    if request.param not in variants:
        pytest.skip(f"this machine does not run {request.param}")
    with Core(threads=3, variant=request.param) as core:
        yield core


@pytest.fixture(scope="module")
def best(variants):
    with Core(threads=2) as core:
        assert core.variant == variants[-1]
        yield core


def tokens(random, count, columns):
    """Tokens of very different sizes, so that a scale taken from a neighbour would show."""
    return (random.standard_normal((count, columns)) * 10.0 ** random.uniform(-3, 3, (count, 1))).astype(np.float32)


@settings(max_examples=30)
@given(data=st.data())
def test_products_agree_with_numpy_to_the_bit_for_any_tokens_and_experts(core, data):
    bits, group = data.draw(st.sampled_from(SCHEMES), label="scheme")
    columns = data.draw(st.integers(1, 3), label="columns") * (group or 36)
    experts, rows = data.draw(st.integers(1, 4), label="experts"), data.draw(st.integers(1, 200), label="rows")
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32), label="seed"))
    x_TK = tokens(random, data.draw(st.integers(0, 40), label="tokens"), columns)
    extreme = data.draw(st.booleans(), label="extreme")
    if extreme:
        x_TK = np.sign(x_TK)
    q, scales = reference.random_matrix(random, (experts, rows, columns), bits, group or columns, extreme=extreme)
    chosen_T = random.integers(0, experts + 1, len(x_TK))
    output_TN = np.full((len(x_TK), rows), np.float32(-7))
    matrix = reference.packed(q, scales, bits)
    core.product(matrix, core.quantise(x_TK, matrix.group), Grouping.of(chosen_T, experts), output_TN)
    expected_TN = np.full_like(output_TN, -7)
    for expert in range(experts):
        expected_TN[chosen_T == expert] = reference.product(x_TK[chosen_T == expert], q[expert], scales[expert])
    np.testing.assert_array_equal(output_TN, expected_TN)


@pytest.mark.parametrize(("bits", "group"), SCHEMES)
def test_sums_of_the_largest_numbers_neither_saturate_nor_overflow(core, bits, group):
    columns = 2048
    q, scales = np.full((1, 32, columns), -8 if bits == 4 else -127), np.ones((1, 32, columns // (group or columns)))
    matrix = reference.packed(q, scales.astype(np.float16 if bits == 4 else np.float32), bits)
    for sign in (1, -1):
        x_TK = np.full((5, columns), sign, dtype=np.float32)
        expected = reference.product(x_TK, q[0], scales[0].astype(np.float32))
        np.testing.assert_array_equal(core.product(matrix, core.quantise(x_TK, matrix.group)), expected)


@pytest.mark.parametrize(("bits", "group"), SCHEMES)
def test_swiglu_follows_the_product_of_gate_and_up_in_turn(core, bits, group):
    random, block, columns = np.random.default_rng(bits + group), 32 if bits == 4 else 16, 256
    q, scales = reference.random_matrix(random, (2, 3 * block, columns), bits, group or columns)
    scales *= scales.dtype.type(0.1)
    rows, row_scales = (reference.interleaved(*halves, block) for halves in (q, scales))
    matrix = reference.packed(rows[None], row_scales[None], bits)
    x_TK = 10 * tokens(random, 11, columns)
    gate, up = (reference.product(x_TK, *half) for half in zip(q, scales))
    assert np.abs(gate).max() > 100
    np.testing.assert_array_equal(
        core.product_swiglu(matrix, core.quantise(x_TK, matrix.group)), reference.swiglu(gate, up)
    )


def test_tokens_are_rounded_half_to_even_each_by_its_own_scale(core):
    rows = [np.zeros(64), np.arange(64) - 31.5, np.full(64, 1e-45), np.linspace(-1e-40, 3e-40, 64), np.full(64, 3e38)]
    x_TK = np.array(rows, dtype=np.float32)
    quantised = core.quantise(x_TK, 32)
    codes_TK, scales_T = reference.quantised(x_TK)
    np.testing.assert_array_equal(quantised.codes_TK, codes_TK)
    np.testing.assert_array_equal(quantised.scales_T, scales_T)
    np.testing.assert_array_equal(quantised.sums_TG, codes_TK.reshape(5, 2, 32).sum(axis=2))
    assert quantised.scales_T[0] == 1


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_a_token_that_is_not_finite_gives_nan_and_spoils_no_other(core, poison):
    random = np.random.default_rng(0)
    q, scales = reference.random_matrix(random, (1, 20, 64), 4, 32)
    x_TK = tokens(random, 3, 64)
    clean = x_TK.copy()
    x_TK[1, 40] = poison
    matrix = reference.packed(q, scales, 4)
    output_TN = core.product(matrix, core.quantise(x_TK, 32))
    assert np.isnan(output_TN[1]).all()
    np.testing.assert_array_equal(output_TN[::2], reference.product(clean, q[0], scales[0])[::2])


def test_the_exponential_of_swiglu_is_accurate():
    x = np.linspace(-87, 88, 20_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(reference.exponential(x) / exact - 1).max() < 2.5e-7


def test_memory_is_read_once_to_its_end(best):
    words = np.ones(400_000, dtype=np.uint64)
    assert best.size("oz_read", best._open(), address(words), words.nbytes) == len(words)
    assert best.read_bandwidth(words) > 0


# ---- what does not fit is refused in words ----


def matrix_of(**changes):
    """32 rows of 64 columns in groups of 32, but for `changes`."""
    codes, scales = np.zeros((1, 16, 64), dtype=np.uint8), np.zeros((1, 2, 32), dtype=np.float16)
    return PackedMatrix(**{"codes": codes, "scales": scales, "rows": 32, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": np.zeros((1, 2, 32), dtype=np.float32)}, "codes are uint8 and scales float32"),
        ({"codes": np.zeros((1, 16, 32), dtype=np.uint8)}, r"codes have shape \(1, 16, 32\)"),
        ({"rows": 33}, "codes have 1 blocks"),
        ({"rows": 0}, "codes have 1 blocks"),
        ({"scales": np.zeros((2, 2, 32), dtype=np.float16)}, r"scales have shape \(2, 2, 32\)"),
        ({"scales": np.zeros((1, 4, 32), dtype=np.float16)}, "groups of 16"),
        ({"codes": np.zeros((1, 16, 128), dtype=np.uint8)[..., ::2]}, "codes are not contiguous"),
        (
            {"codes": np.zeros((1, 1 << 15, 64), np.uint8), "scales": np.zeros((1, 1 << 12, 32), np.float16)},
            "131072 columns",
        ),
    ],
)
def test_arrays_that_are_no_packed_matrix_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        matrix_of(**changes)


def test_arguments_that_do_not_fit_each_other_are_refused(best):
    matrix = matrix_of()
    x = best.quantise(np.zeros((3, 64), dtype=np.float32), 32)
    with pytest.raises(ValueError, match="contiguous float32"):
        best.quantise(np.zeros((3, 64)))
    with pytest.raises(ValueError, match="no multiple"):
        best.quantise(np.zeros((3, 64), dtype=np.float32), 48)
    with pytest.raises(ValueError, match="600000 tokens are more"):
        best.quantise(np.zeros((600_000, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="groups of 64"):
        best.product(matrix, best.quantise(np.zeros((3, 64), dtype=np.float32)))
    with pytest.raises(ValueError, match="multiple of 64"):
        best.product_swiglu(matrix, x)
    with pytest.raises(ValueError, match=r"the output is float32 of shape \(3, 31\)"):
        best.product(matrix, x, output_TN=np.zeros((3, 31), dtype=np.float32))


@pytest.mark.parametrize(
    ("places", "ends", "message"),
    [
        ([0], [1, 1], "for 2 matrices"),
        ([0, 1], [1], "do not rise to its 2 places"),
        ([0], [-1], "do not rise"),
        ([3], [1], "names tokens 3 to 3"),
        ([-1], [1], "names tokens -1"),
        ([1, 1], [2], "a token twice"),
    ],
)
def test_a_grouping_that_would_read_or_write_elsewhere_is_refused(best, places, ends, message):
    grouping = Grouping(np.array(places, dtype=np.int32), np.array(ends, dtype=np.int32))
    with pytest.raises(ValueError, match=message):
        best.product(matrix_of(), best.quantise(np.zeros((3, 64), dtype=np.float32), 32), grouping)


def test_an_unknown_variant_and_a_senseless_number_of_threads_are_refused(best):
    with pytest.raises(ValueError, match="variant is 'mmx'; this machine runs portable"):
        Core(variant="mmx", threads=1)
    with pytest.raises(ValueError, match="threads is 0"):
        Core(threads=0)
