from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharded_training as training
import torch
from rank_pool import RankPool, rank_pool

from openzaya.model.checkpoint import save_model
from openzaya.model.router import Routing
from openzaya.train.learner import Learner
from openzaya.train.muon import orthogonalise
from openzaya.train.sharding.batches import padded
from openzaya.train.sharding.context import RowPart
from openzaya.train.sharding.experts import split_experts
from openzaya.train.sharding.matrices import iterated
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
    # A gradient that is a small sum of large terms (a temperature's) keeps their rounding, so it is measured against a
    # hundredth of the whole gradient where its own size is less.
    least = {"gradients": 1e-2 * min(expected["norms"]), "weights": 1e-3}
    for kind, floor in least.items():
        assert found[kind].keys() == expected[kind].keys()
        for name, truth in expected[kind].items():
            error = np.linalg.norm(found[kind][name] - truth) / max(np.linalg.norm(truth), floor)
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
    changes = {"optimizer": NO_CLIP} if seed == 0 else {}
    shape, expected = training.train_alone_clearly(seed, **changes)
    found, _other = two(_train, shape, TWO[axis], changes)
    assert_equal_training(found, expected)


LORA = {"model": {"checkpoint": "tiny"}, "lora": {"rank": 3}}
VARIANTS = {
    "linear routers and pid, data": (Degrees(), {"ablation": {"router": "linear"}, "balancing": {"method": "pid"}}),
    "auxiliary loss and linear routers, context": (
        Degrees(context=2),
        {"ablation": {"router": "linear"}, "balancing": {"method": "auxiliary", "auxiliary_weight": 2.0}},
    ),
    "auxiliary loss and AdamW on matrices, experts": (
        Degrees(experts=2),
        {
            "balancing": {"method": "auxiliary", "auxiliary_weight": 2.0},
            "optimizer": {"matrices": "adamw", "adamw_rate": 0.02},
        },
    ),
    "adapters and sign, experts": (Degrees(experts=2), {**LORA, "balancing": {"method": "sign"}}),
    "adapters of the experts and none, context": (
        Degrees(context=2),
        {**LORA, "lora": {"rank": 4, "parts": ("experts",)}, "balancing": {"method": "none"}},
    ),
    "parts of CCA, routers and residual scaling left out, context": (
        Degrees(context=2),
        {"ablation": {"convolutions": 1, "qk_mean": False, "depth_averaging": False, "residual_scaling": False}},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_a_recipe_takes_the_same_steps_on_two_ranks(variant: str, two: RankPool) -> None:
    degrees, changes = VARIANTS[variant]
    shape, expected = training.train_alone_clearly(10 + list(VARIANTS).index(variant), **changes)
    found, _other = two(_train, shape, degrees, changes)
    assert_equal_training(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("axes", FOUR)
def test_four_ranks_take_the_steps_of_one(axes: str, four: RankPool) -> None:
    fixed = {"cca_time0": 2, "cca_time1": 2}
    shape, expected = training.train_alone_clearly(2 + list(FOUR).index(axes), fixed=fixed)
    found, *_others = four(_train, shape, FOUR[axes], {})
    assert_equal_training(found, expected)


def test_one_rank_takes_the_same_steps_without_a_process_group() -> None:
    shape, expected = training.train_alone_clearly(0, steps=2)
    found = training.train_sharded(shape, Degrees(), steps=2)
    assert found is not None
    assert_equal_training(found, expected)


@pytest.mark.parametrize("kind", ["scratch", "linear routers", "checkpoint", "adapters in bfloat16"])
def test_ranks_begin_with_the_bits_of_one_process(kind: str, two: RankPool, tmp_path: Path) -> None:
    shape = training.draw_shape(3, num_experts=4)
    changes: dict[str, dict[str, Any]] = {
        "scratch": {"seed": 5},
        "linear routers": {"ablation": {"router": "linear"}},
        "checkpoint": {"model": {"checkpoint": str(tmp_path)}},
        "adapters in bfloat16": {"model": {"checkpoint": str(tmp_path)}, "lora": {"rank": 3}, "dtype": "bfloat16"},
    }
    save_model(training.draw_model(shape, 1), tmp_path, "legacy" if kind == "checkpoint" else "native")
    config = training.config_of(**changes[kind])
    alone = Learner.create(config, shape)
    masters = {name: slot.master for name, slot in alone.optimizer.slots.items()}
    expected = {name: masters.get(name, tensor).detach().float() for name, tensor in alone.model.state_dict().items()}
    found, _other = two(training.first_tensors, config, shape, Degrees(experts=2))
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert torch.equal(torch.from_numpy(found[name]), truth), name


def test_a_rank_never_has_room_for_more_than_its_share_and_one_tensor(two: RankPool) -> None:
    shape = training.draw_shape(0, vocab_size=500, hidden_size=32, moe_intermediate_size=64, num_experts=8)
    config = training.config_of()
    alone = Learner.create(config, shape)
    largest = max(tensor.nbytes for tensor in alone.model.parameters())
    everything = sum(tensor.nbytes for tensor in alone.state().values())
    for most, kept in two(training.bytes_of_beginning, config, shape, Degrees(experts=2)):
        assert kept < 0.52 * everything
        assert most - kept <= 1.1 * largest
        assert most < 0.75 * everything


def test_matrices_of_one_shape_are_iterated_together() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = {str(n): torch.randn(6, 4 + 2 * (n % 2), generator=generator) for n in range(5)}
    calls: list[torch.Size] = []

    def iterate(stack: torch.Tensor) -> torch.Tensor:
        calls.append(stack.shape)
        return orthogonalise(stack, dtype=torch.float32)

    results = iterated(whole, iterate)
    assert calls == [(3, 6, 4), (2, 6, 6)]
    for name, matrix in whole.items():
        torch.testing.assert_close(results[name], orthogonalise(matrix, dtype=torch.float32), rtol=1e-5, atol=1e-6)


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
