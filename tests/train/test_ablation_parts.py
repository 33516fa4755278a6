"""Each ablation leaves out what it says, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from openzaya.model.attention import CCAProjection
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.placement import place
from openzaya.train.ablation import PartialProjection, exchange_parts
from openzaya.train.ablation_recipe import AblationRecipe
from openzaya.train.learner import Learner
from train_shapes import SHAPE, random_batch, recipe

LAYERS, WIDTH = 3, 32
PARTS: list[dict[str, Any]] = [
    {"router": "linear"}, {"depth_averaging": False}, {"residual_scaling": False}, {"convolutions": 1},
    {"convolutions": 0}, {"qk_mean": False}, {"value_shift": False},
]  # fmt: skip


def learner(**ablation: Any) -> Learner:
    return Learner.create(recipe(ablation=ablation), SHAPE)


def parameters(of: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.model.named_parameters()}


def learned(of: Learner) -> int:
    return sum(slot.master.numel() for slot in of.optimizer.slots.values())


def stirred(projection: CCAProjection) -> CCAProjection:
    """Weights and biases that nothing cancels."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return projection


def packed() -> tuple[Tensor, Any]:
    """Inputs of an attention (2, 12, D), rows of two documents, with their placement."""
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 8 + [1] * 4])
    placement = place(SHAPE, torch.zeros(2, 12, dtype=torch.long), None, documents, None, None)
    return torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(1)), placement


def projections(**parts: bool) -> tuple[PartialProjection, CCAProjection]:
    """One with parts left out and the whole one, of the same weights."""
    model = initialise(ZayaForCausalLM(SHAPE))
    whole = stirred(model.model.layers[1].self_attn.qkv_proj)
    other = ZayaForCausalLM(SHAPE)
    exchange_parts(other, AblationRecipe(**{"qk_mean": False, **parts}))
    part = other.model.layers[1].self_attn.qkv_proj
    assert isinstance(part, PartialProjection)
    part.qk_mean = parts.get("qk_mean", True)
    part.load_state_dict(whole.state_dict())
    return part, whole


# ---- what is held ----


@pytest.mark.parametrize(
    ("ablation", "names", "count"),
    [
        ({"depth_averaging": False}, ["router_states_scale"], (LAYERS - 1) * 8),
        ({"residual_scaling": False}, ["residual_scale.", "input_hidden_states"], 4 * 2 * LAYERS * WIDTH + 2 * WIDTH),
        ({"convolutions": 1}, ["conv_qk_grouped"], LAYERS * (48 * 8 * 2 + 48)),
        ({"convolutions": 0}, ["conv_qk_"], LAYERS * (48 * 8 * 2 + 48 + 48 * 2 + 48)),
    ],
)
def test_what_is_held_does_not_move_and_everything_else_learns(
    ablation: dict[str, Any], names: list[str], count: int
) -> None:
    whole, ours = learner(), learner(**ablation)
    before = parameters(ours)
    for seed in range(2):
        ours.step([random_batch(seed)], 1.0)
    moved = {name for name, value in parameters(ours).items() if not torch.equal(value, before[name])}
    held = {name for name in before if any(part in name for part in names)}
    assert held
    assert moved.isdisjoint(held)
    # The second layer's scale of a first layer that has none, and keys' temperatures, are there in both.
    whole_before = parameters(whole)
    for seed in range(2):
        whole.step([random_batch(seed)], 1.0)
    assert {
        name for name, value in parameters(whole).items() if not torch.equal(value, whole_before[name])
    } - held <= moved
    assert learned(whole) - learned(ours) == count


def test_a_model_without_residual_scaling_starts_as_the_whole_one() -> None:
    assert learner(residual_scaling=False).loss_of([random_batch(0)]) == learner().loss_of([random_batch(0)])


def test_convolutions_that_are_held_pass_on_what_they_get() -> None:
    columns = torch.randn(2, 14, 48)
    resets = packed()[1].resets_BS
    none = learner(convolutions=0).model.model.layers[2].self_attn.qkv_proj
    torch.testing.assert_close(none.convolve(columns, resets), columns[:, 2:])
    one = learner(convolutions=1).model.model.layers[2].self_attn.qkv_proj
    with torch.no_grad():
        one.conv_qk_depthwise.weight.normal_()
        one.conv_qk_depthwise.bias.normal_()
    before, now = one.conv_qk_depthwise.weight[:, 0].unbind(dim=1)
    earlier = columns[:, 1:-1] * (resets > 0)[..., None]
    torch.testing.assert_close(
        one.convolve(columns, resets), now * columns[:, 2:] + before * earlier + one.conv_qk_depthwise.bias
    )


def test_without_depth_averaging_a_router_hears_nothing_of_the_one_below() -> None:
    gate = learner(depth_averaging=False).model.model.layers[1].mlp.gate
    x, below = torch.randn(9, WIDTH), torch.randn(9, 8)
    for with_state, without in zip(gate(x, below, None), gate(x, torch.zeros(9, 8), None), strict=True):
        assert torch.equal(with_state, without)
    whole = learner().model.model.layers[1].mlp.gate
    assert not torch.equal(whole(x, below, None)[2], whole(x, torch.zeros(9, 8), None)[2])


# ---- what is exchanged ----


def test_a_projection_of_which_nothing_is_left_out_is_the_whole_one() -> None:
    part, whole = projections()
    x, placement = packed()
    for ours, theirs in zip(part(x, placement, None), whole(x, placement, None), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_the_mean_queries_and_keys_are_what_the_convolutions_give() -> None:
    part, whole = projections(qk_mean=False)
    x, placement = packed()
    queries, keys, values = part(x, placement, None)
    columns = torch.cat([part.q_proj(x), part.k_proj(x)], dim=-1)
    mixed = part.convolve(torch.nn.functional.pad(columns, (0, 0, 2, 0)), placement.resets_BS)
    torch.testing.assert_close(torch.cat([queries.flatten(2), keys.flatten(2)], dim=-1), mixed)
    assert torch.equal(values, whole(x, placement, None)[2])


def test_without_the_value_shift_both_halves_are_of_the_token_itself() -> None:
    part, whole = projections(value_shift=False)
    x, placement = packed()
    queries, keys, values = part(x, placement, None)
    torch.testing.assert_close(values.flatten(2), torch.cat([part.v_proj_current(x), part.v_proj_delayed(x)], dim=-1))
    for ours, theirs in zip((queries, keys), whole(x, placement, None)[:2], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("ablation", PARTS, ids=str)
def test_every_ablation_learns_and_gives_its_own_masters_back(ablation: dict[str, Any]) -> None:
    ours = learner(**ablation)
    first = ours.step([random_batch(0)], 1.0).loss
    for _step in range(10):
        last = ours.step([random_batch(0)], 1.0).loss
    assert last < 0.8 * first
    ids = torch.randint(2, 60, (1, 7))
    with torch.no_grad():
        torch.testing.assert_close(ours.master_model()(ids), ours.model(ids))


def test_models_that_compute_as_a_zaya_have_checkpoints() -> None:
    fitting = {str(ablation) for ablation in PARTS if AblationRecipe(**ablation).fits_layout}
    assert fitting == {str(part) for part in PARTS[1:5]}
