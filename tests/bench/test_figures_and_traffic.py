"""The arithmetic of benchmarks: rounds, spreads, bytes, shared beginnings, what fits."""

from __future__ import annotations

import subprocess

import pytest

from openzaya.bench.figures import Figure, busy_processes, in_rounds, ratio
from openzaya.bench.outlook import SHARE_IN_CORE, outlooks, outlooks_on_gpu
from openzaya.bench.traffic import expected_experts, small_in_core, step_traffic, weights_of
from openzaya.model.config import NAMED_SHAPES
from openzaya.model.quantised.matrices import container_bytes
from openzaya.model.quantised.scheme import SCHEMES, W4_GROUP_32, W4_GROUP_128, W8

BIG = NAMED_SHAPES["zaya1-8b"]


# ---- rounds ----


def test_every_round_visits_every_case_in_turn():
    seen, told = [], []

    def case(name):
        def run():
            seen.append(name)
            return float(len(seen))

        return name, run

    found = in_rounds([case("a"), case("b")], 3, lambda *step: told.append(step))
    assert seen == ["a", "b"] * 3
    assert found == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert told[:3] == [(0, 6, "a"), (1, 6, "b"), (2, 6, "a")]
    assert told[-1][:2] == (6, 6)


def test_a_figure_is_the_median_with_its_spread_and_a_ratio_is_taken_within_a_round():
    assert Figure.of([5, 1, 3]) == Figure(3, 1, 5)
    # The machine halved its speed in the second round, and the ratio does not know.
    assert ratio([10, 5, 10], [20, 10, 20]) == Figure(0.5, 0.5, 0.5)
    assert Figure(123.456, 0.00012345, 9876.5).as_json() == {"median": 123.5, "low": 0.0001234, "high": 9876}
    with pytest.raises(ValueError, match="1 repeat or more"):
        Figure.of([])


def test_busy_processes_end_with_the_block(monkeypatch):
    started = []
    original = subprocess.Popen

    def popen(*arguments, **options):
        started.append(original(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with busy_processes(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.poll() is not None for process in started)


# ---- bytes ----


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_parts_of_the_weights_are_the_whole_container(scheme):
    assert weights_of(BIG, scheme, 2).total(BIG) == container_bytes(BIG, scheme, 2)
    untied = BIG.with_(tie_word_embeddings=False)
    assert weights_of(untied, scheme, 2).total(untied) == container_bytes(untied, scheme, 2)


@pytest.mark.parametrize(("scheme", "bits"), [(W4_GROUP_128, 4.125), (W4_GROUP_32, 4.5), (W8, 8)])
def test_a_token_of_the_big_model_reads_what_is_known_of_it(scheme, bits):
    traffic = step_traffic(
        BIG, weights_of(BIG, scheme, 2, small=small_in_core(BIG)), rows=1, context=0, experts=40, vector_bytes=0
    )
    attention, expert, head = 40 * 5.243e6, 40 * 12.583e6, 537.1e6
    assert traffic.total - traffic.small == pytest.approx((attention + expert + head) * bits / 8, rel=0.005)
    assert traffic.head == pytest.approx(head * bits / 8, rel=0.005)
    assert traffic.small == pytest.approx(40 * 1.01e6 * 2 + 2.5e6, rel=0.01)  # the vectors are float32


def test_keys_and_values_count_for_every_row_and_up_to_the_window():
    weights = weights_of(BIG, W8, 2)

    def kept(config, rows, context):
        return step_traffic(config, weights, rows=rows, context=context, experts=1, vector_bytes=256).keys_and_values

    assert kept(BIG, 1, 1) == 40_960
    assert kept(BIG, 16, 1000) == 16 * 1000 * 40_960
    sliding = BIG.with_(layer_types=("hybrid_sliding", "hybrid") * 20, sliding_window=100)
    assert kept(sliding, 1, 1000) == 40_960 / 40 * 20 * (100 + 1000)


def test_expected_experts_go_from_one_a_layer_to_all():
    assert expected_experts(BIG, 1) == pytest.approx(40)
    assert expected_experts(BIG, 16) / 40 == pytest.approx(10.3, abs=0.05)
    assert expected_experts(BIG, 10_000) == pytest.approx(40 * 16)


# ---- what fits ----


def test_what_fits_follows_from_memory_and_speed_from_the_probe():
    found = {
        (each.scheme, each.group): each
        for each in outlooks(BIG, available_bytes=16 * 10**9, bytes_a_second=4e10, core=True)
    }
    plain, coarse = found["bfloat16", None], found["w4", 128]
    assert (plain.fits, coarse.fits, plain.executor, coarse.executor) == (False, True, "torch", "core")
    assert plain.memory_bytes == pytest.approx(17.7e9, rel=0.01)
    assert coarse.disk_bytes == pytest.approx(4.62e9, rel=0.01)
    assert coarse.sequences == (16 * 10**9 - coarse.memory_bytes) // coarse.sequence_bytes
    # 0.645 GB of matrices, and the small tensors.
    assert coarse.tokens_a_second == pytest.approx(4e10 * SHARE_IN_CORE / 0.728e9, rel=0.02)


def test_without_a_core_quantised_weights_are_as_large_as_plain_ones_and_nothing_unknown_is_said():
    each = outlooks(BIG, available_bytes=None, bytes_a_second=4e10, core=False)[-1]
    assert (each.executor, each.fits, each.sequences) == ("torch", None, None)
    assert each.memory_bytes == pytest.approx(17.7e9, rel=0.01)
    assert each.disk_bytes < 6e9


def test_a_shape_that_a_scheme_cannot_hold_is_refused_in_words():
    config = NAMED_SHAPES["tiny"].with_(moe_intermediate_size=200)
    by_scheme = {
        (each.scheme, each.group): each
        for each in outlooks(config, available_bytes=10**9, bytes_a_second=1e10, core=True)
    }
    assert "200" in by_scheme["w4", 32].refusal
    assert by_scheme["bfloat16", None].refusal is None
    assert by_scheme["bfloat16", None].tokens_a_second is None, "weights that fit in a cache have no estimate"


def test_a_gpu_of_8_gb_holds_the_8b_in_four_bits_alone():
    found = {(each.scheme, each.group): each for each in outlooks_on_gpu(NAMED_SHAPES["zaya1-8b"], "a GPU", 8 << 30)}
    assert {way for way, each in found.items() if each.fits} == {("w4", 32), ("w4", 128)}
    assert all(each.executor == "torch on a GPU" and each.tokens_a_second is None for each in found.values())
