from __future__ import annotations

import itertools

import pytest
import torch

from openzaya.train.config import PhaseRecipe
from openzaya.train.schedule import rate_scale, total_steps, warmup_steps


def scales(**fields: object) -> list[float]:
    phase = PhaseRecipe(name="x", batch_tokens=10, **fields)  # type: ignore[arg-type]
    return [rate_scale(phase, step) for step in range(total_steps(phase))]


def torchs(make: object, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []  # type: ignore[operator]
    for _step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("steps", "floor", "warmup"), [(100, 1 / 3, 0.0), (57, 0.0, 0.25), (8, 0.1, 0.5)])
def test_a_cosine_and_a_line_are_torchs_behind_the_warmup(steps: int, floor: float, warmup: float) -> None:
    fields = {"tokens": steps * 10, "floor": floor, "warmup": warmup}
    behind = steps - warmup * steps
    cosine = torchs(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=behind, eta_min=floor), steps
    )
    line = torchs(lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, floor, total_iters=behind), steps)
    for name, oracle in (("cosine", cosine), ("linear", line)):
        ours = scales(schedule=name, **fields)
        first = -int(-warmup * steps // 1)
        if warmup * steps == first:
            assert ours[first:] == pytest.approx(oracle[: steps - first], abs=1e-6)
        assert ours[: int(warmup * steps)] == pytest.approx(
            [(step + 1) / (warmup * steps) for step in range(int(warmup * steps))]
        )


def test_the_published_first_phase_falls_from_6e_4_to_2e_4() -> None:
    rates = [6e-4 * scale for scale in scales(tokens=100_000, schedule="cosine", floor=1 / 3)]
    assert rates[0] == pytest.approx(6e-4)
    assert rates[5_000] == pytest.approx(4e-4)
    assert rates[-1] == pytest.approx(2e-4, rel=1e-4)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_warmup_in_tokens_and_as_a_share_are_the_same() -> None:
    phase = PhaseRecipe(name="x", tokens=1000, batch_tokens=10, warmup_tokens=250)
    assert warmup_steps(phase) == 25
    assert scales(tokens=1000, warmup_tokens=250, schedule="cosine") == scales(
        tokens=1000, warmup=0.25, schedule="cosine"
    )


def test_peak_scales_every_schedule() -> None:
    for name in ("wsd", "cosine", "linear"):
        whole = scales(tokens=400, warmup=0.1, schedule=name, floor=0.2)
        half = scales(tokens=400, warmup=0.1, schedule=name, floor=0.2, peak=0.5)
        assert half == pytest.approx([scale / 2 for scale in whole])
