"""The kernels that train, below FSDP2, context parallelism and recomputation, in Triton's interpreter."""

from __future__ import annotations

import multiprocessing

import pytest
import sharded_training as training
from rank_pool import rank_pool
from test_sharding import NO_CLIP, assert_equal_training

from openzaya.train.sharding.meshes import Degrees

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["data", "context"])
def test_two_ranks_with_kernels_take_the_steps_of_one_without(axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read when Triton is imported, so the ranks must not come from a process that has it.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("rank_pool._SERVER", multiprocessing.get_context("spawn"))
    fixed = {"cca_time0": 2, "cca_time1": 2, "num_hidden_layers": 2, "layer_types": (), "sliding_window": None}
    shape, expected = training.train_alone_clearly(3, steps=1, fixed=fixed, optimizer=NO_CLIP)
    degrees = Degrees(context=2) if axis == "context" else Degrees()
    with rank_pool(2) as two:
        (found, calls), _other = two(_train_with_kernels, shape, degrees)
    assert calls > 0
    assert_equal_training(found, expected)


def _train_with_kernels(shape: training.ZayaConfig, degrees: Degrees) -> tuple[training.Result | None, int]:
    from openzaya.model import cca_gradients, kernels

    calls, backward = [], cca_gradients._to_columns

    def counted(*arguments):
        calls.append(1)
        return backward(*arguments)

    cca_gradients._to_columns = counted
    kernels.has_kernels = lambda _x: True
    return training.train_sharded(shape, degrees, steps=1, optimizer=NO_CLIP), len(calls)
