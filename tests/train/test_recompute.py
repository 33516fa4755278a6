from __future__ import annotations

import random

import pytest
import torch

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.router import Routing
from openzaya.train.learner import Learner
from openzaya.train.recompute import checkpoint_blocks
from train_shapes import SHAPE, random_batch, recipe


@pytest.mark.parametrize("seed", range(4))
def test_blocks_computed_again_give_the_same_gradients_and_are_counted_once(seed: int) -> None:
    sizes = random.Random(seed)
    shape = SHAPE.with_(num_hidden_layers=sizes.randint(1, 4), num_experts=sizes.randint(2, 6))
    batches = [random_batch(seed), random_batch(seed + 100, rows=2)]
    plain = Learner.create(recipe(), shape)
    again = Learner.create(recipe({"activation_checkpointing": True}), shape)
    for learner in (plain, again):
        for batch in batches:
            learner._accumulate(batch, 40, 100)
    tokens = sum(int(batch.real.sum()) for batch in batches)
    skipped = tokens - again.balancer.counts.sum(dim=1)
    assert (skipped >= 0).all()
    assert torch.equal(plain.balancer.counts, again.balancer.counts)
    ours = dict(again.model.named_parameters())
    for name, parameter in plain.model.named_parameters():
        assert (parameter.grad is None) == (ours[name].grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, ours[name].grad), name  # type: ignore[arg-type]


def test_only_block_inputs_are_kept_for_the_backward() -> None:
    def kept(checkpointing: bool) -> int:
        learner = Learner.create(recipe({"activation_checkpointing": checkpointing}), SHAPE)
        elements = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal elements
            elements += tensor.numel()
            return tensor

        batch = random_batch(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            learner._loss(batch, 1.0, None)
        return elements

    assert kept(True) < kept(False) / 4


def test_a_replayed_routing_is_followed_in_every_block() -> None:
    model = initialise(ZayaForCausalLM(SHAPE))
    checkpoint_blocks(model)
    ids = torch.randint(2, 60, (2, 9))
    forced = [torch.randint(0, 4, (18,)) for _layer in range(3)]
    routing = Routing(forced=forced)
    model.hidden(ids, routing=routing).sum().backward()
    assert len(routing.chosen) == 3
    assert all(torch.equal(one, other) for one, other in zip(routing.chosen, forced, strict=True))
