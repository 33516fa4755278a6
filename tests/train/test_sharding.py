from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import sharded_training as training
import torch
from rank_pool import RankPool, rank_pool

from openzaya.model.router import Routing
from openzaya.train.sharding.batches import padded
from openzaya.train.sharding.context import RowPart
from openzaya.train.sharding.experts import split_experts
from openzaya.train.sharding.meshes import Degrees, Meshes

NO_CLIP = training.OptimizerRecipe(muon_rate=0.02, adamw_rate=0.02, balancing_rate=0.01, clip=1e9)


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    with rank_pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    with rank_pool(4) as pool:
        yield pool


def assert_equal_training(found: training.Result, expected: training.Result) -> None:
    for figure in ("losses", "norms", "entropies", "held_out"):
        np.testing.assert_allclose(found[figure], expected[figure], rtol=1e-5, err_msg=figure)
    for kind in ("gradients", "weights"):
        assert found[kind].keys() == expected[kind].keys()
        for name, truth in expected[kind].items():
            error = np.linalg.norm(found[kind][name] - truth) / max(np.linalg.norm(truth), 1e-3)
            assert error <= 1e-5, f"{kind} {name}: {error:.2e}"


TWO = {"data": Degrees(), "experts": Degrees(experts=2), "context": Degrees(context=2)}
FOUR = {
    "data x experts": Degrees(experts=2),
    "data x context": Degrees(context=2),
    "experts x context": Degrees(experts=2, context=2),
    "data": Degrees(),
    "experts": Degrees(experts=4),
    "context": Degrees(context=4),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("axis", TWO)
def test_two_ranks_take_the_steps_of_one(axis: str, seed: int, two: RankPool) -> None:
    shape = training.draw_shape(seed)
    changes = {"optimizer": NO_CLIP} if seed == 0 else {}
    found, _other = two(_train, shape, TWO[axis], changes)
    assert_equal_training(found, training.train_alone(shape, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("axes", FOUR)
def test_four_ranks_take_the_steps_of_one(axes: str, four: RankPool) -> None:
    shape = training.draw_shape(2 + list(FOUR).index(axes), cca_time0=2, cca_time1=2)
    found, *_others = four(_train, shape, FOUR[axes], {})
    assert_equal_training(found, training.train_alone(shape))


def test_one_rank_takes_the_same_steps_without_a_process_group() -> None:
    shape = training.draw_shape(0)
    found = training.train_sharded(shape, Degrees(), steps=2)
    assert found is not None
    assert_equal_training(found, training.train_alone(shape, steps=2))


def test_degrees_that_do_not_divide_the_ranks_are_refused() -> None:
    assert Degrees(experts=2, context=2).data(8) == 2
    with pytest.raises(ValueError, match="6 ranks cannot be divided by experts 2 x context 2"):
        Degrees(experts=2, context=2).data(6)


def test_experts_that_cannot_be_split_evenly_are_refused() -> None:
    model = training.draw_model(training.draw_shape(0, num_experts=5), 1)
    with pytest.raises(ValueError, match="5 experts cannot be split over 2 ranks"):
        split_experts(model.model.layers[0].mlp.experts, Meshes(Degrees(experts=2), ranks=2))


def test_rows_that_cannot_be_split_are_refused_and_padding_makes_them_fit() -> None:
    batch = training.draw_batch(training.draw_shape(0), 0, length=21)
    part = RowPart(history=2, place=3, parts=4, group=None)  # type: ignore[arg-type]
    for length in (21, 4):
        with pytest.raises(ValueError, match=f"rows of {length} tokens cannot be split over 4 ranks"):
            part.part(length)
    longer = padded(batch, parts=4, least=2)
    assert part.part(longer.input_ids.shape[1]) == slice(18, 24)
    assert not longer.real[:, 21:].any()
    assert (longer.document_ids[:, 21:] == -1).all()
    assert padded(batch, parts=16, least=2).input_ids.shape[1] == 32


def test_the_models_of_these_tests_use_several_experts_and_skip_some_tokens() -> None:
    for seed in range(2):
        shape, routing = training.draw_shape(seed), Routing()
        batch = training.draw_batch(shape, 0, rows=4)
        place = torch.from_numpy
        training.draw_model(shape, 1).hidden(
            place(batch.input_ids), document_ids=place(batch.document_ids), routing=routing
        )
        chosen = torch.cat(routing.chosen)
        assert len(chosen.unique()) >= 4
        assert (chosen == shape.num_experts).any()


def _train(shape: training.ZayaConfig, degrees: Degrees, changes: dict) -> training.Result | None:  # type: ignore[type-arg]
    return training.train_sharded(shape, degrees, **changes)
