"""A long Markovian RSA run: rounds of prompts that share their beginning, forty of them after a warm-up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core_models import SHAPE, decided_model, quantised
from engine_models import generation, pages_held, run, scheduler_for, small_model
from openzaya.engine.core.executor import CompiledExecutor
from openzaya.engine.core.products import Core
from openzaya.engine.scheduler import Scheduler, slots_for
from openzaya.engine.state import StatePool
from openzaya.engine.torch_threads import torch_threads

ROUNDS, WARM_UP, CANDIDATES, TAIL = 50, 10, 4, 24
PAGES = 40


def resident_bytes():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the resident memory of a process is read from /proc, which is not there")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def round_of(scheduler, question, tails):
    """One round: every candidate reads two tails of the last one, and the traces are dropped."""
    wanted = []
    for candidate in range(CANDIDATES):
        read = [*tails[candidate], *tails[(candidate + 1) % CANDIDATES]]
        wanted.append(generation([*question, *read], candidate, TAIL + 8))
        scheduler.submit(wanted[-1])
    run(scheduler)
    return [each.generated[-TAIL:] for each in wanted]


def compiled_scheduler(variants):
    weights = quantised(decided_model(SHAPE), 4)
    pool = StatePool(SHAPE, memory=1 << 30, slots=slots_for(CANDIDATES), kv=torch.float16)
    memory = PAGES * pool.page_bytes + slots_for(CANDIDATES) * pool.slot_bytes
    pool = StatePool(SHAPE, memory=memory, slots=slots_for(CANDIDATES), kv=torch.float16)
    core = Core(threads=1, variant=variants[-1])
    return Scheduler(CompiledExecutor(weights, pool, core), max_batch=CANDIDATES)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["torch", "compiled"])
def test_memory_is_constant_over_a_long_run_of_rounds(executor, request):
    if executor == "torch":
        scheduler = scheduler_for(small_model(), pages=PAGES, max_batch=CANDIDATES)
    else:
        scheduler = compiled_scheduler(request.getfixturevalue("variants"))
    random = np.random.default_rng(0)
    question = random.integers(0, 250, 40).tolist()
    tails = [random.integers(0, 250, TAIL).tolist() for _ in range(CANDIDATES)]
    pool, free_slots, resident = scheduler.pool, [], []
    for number in range(ROUNDS):
        with torch_threads(1):  # two threads on such small products wait for each other most of the time
            tails = round_of(scheduler, question, tails)
        resident.append(resident_bytes())
        assert pool.pages - pool.free_pages <= PAGES
        if number % 10 == 9:
            assert pages_held(scheduler) == 0
            free_slots.append(pool.free_slots)
    assert set(free_slots) == {pool.slots}
    assert not scheduler.busy
    assert not scheduler._jobs
    assert max(resident[WARM_UP:]) - resident[WARM_UP] < 4 << 20
