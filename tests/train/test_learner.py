from __future__ import annotations

import math

import pytest
import torch

from openzaya.train.learner import Learner
from train_shapes import SHAPE, random_batch, recipe


def test_microbatches_of_any_size_make_the_same_step() -> None:
    whole = [random_batch(0, rows=2), random_batch(1, rows=4)]
    learners = [Learner.create(recipe(), SHAPE) for _ in range(2)]
    figures = [learners[0].step(whole, 1.0), learners[1].step(whole[::-1], 1.0)]
    assert figures[0].loss == pytest.approx(figures[1].loss, rel=1e-5)
    assert figures[0].gradient_norm == pytest.approx(figures[1].gradient_norm, rel=1e-4)
    assert figures[0].load_entropies == pytest.approx(figures[1].load_entropies)
    assert len(figures[0].load_entropies) == 3


def test_the_loss_is_the_mean_over_learned_tokens_and_held_out_losses_change_nothing() -> None:
    learner, batches = Learner.create(recipe(), SHAPE), [random_batch(0), random_batch(1)]
    before = {name: tensor.clone() for name, tensor in learner.state().items()}
    held_out = learner.loss_of(batches)
    with torch.no_grad():
        total = sum(
            torch.nn.functional.cross_entropy(
                learner.model(torch.from_numpy(b.input_ids), document_ids=torch.from_numpy(b.document_ids))[b.learned],
                torch.from_numpy(b.targets)[b.learned],
                reduction="sum",
            ).item()
            for b in batches
        )
    assert held_out == pytest.approx(total / sum(b.learned_tokens for b in batches), rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state().items())
    assert not learner.balancer.counts.any()
    assert learner.step(batches, 1.0).loss == pytest.approx(held_out, rel=1e-5)


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_the_next_one_is_as_if_it_had_not_been() -> None:
    whole, broken = Learner.create(recipe(), SHAPE), Learner.create(recipe(), SHAPE)
    weight = broken.model.model.norm.weight
    hook = weight.register_hook(lambda gradient: gradient * math.nan)
    figures = broken.step([random_batch(5)], 1.0)
    hook.remove()
    assert not figures.taken
    assert math.isnan(figures.gradient_norm)
    assert broken.optimizer.step_count == 0
    for learner in (whole, broken):
        assert learner.step([random_batch(6)], 1.0).taken
    ours = broken.state()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in whole.state().items())


def test_the_reports_float32_operations_bring_a_bfloat16_step_nearer_to_float32() -> None:
    def gradient(dtype: str, numerics: str) -> torch.Tensor:
        learner = Learner.create(recipe(dtype=dtype, numerics=numerics), SHAPE.with_(vocab_size=400))
        for seed in range(3):
            learner._accumulate(random_batch(seed, rows=4, vocabulary=400), 100, 100)
        return torch.cat([p.grad.double().flatten() for p in learner.model.parameters() if p.grad is not None])

    truth = gradient("float32", "hf")
    assert torch.allclose(gradient("float32", "report"), truth, rtol=1e-4, atol=1e-7)
    plain, lifted = (float((gradient("bfloat16", name) - truth).norm() / truth.norm()) for name in ("hf", "report"))
    assert lifted < plain < 0.2


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_either_optimizer_of_matrices_learns_a_batch(matrices: str) -> None:
    learner = Learner.create(recipe(optimizer={"matrices": matrices}), SHAPE)
    losses = [learner.step([random_batch(0)], 1.0).loss for _step in range(15)]
    assert losses[-1] < 0.7 * losses[0]
    kinds = {len(slot.moments) for name, slot in learner.optimizer.slots.items() if name.endswith("o_proj.weight")}
    assert kinds == ({1} if matrices == "muon" else {2})
