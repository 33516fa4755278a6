"""The compiled core's threads: they share work, sleep when idle, survive a fork and end when told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import core_reference as reference
from openzaya.engine.core import products
from openzaya.engine.core.products import Core, Grouping

pytestmark = pytest.mark.usefixtures("variants")
TASKS = Path("/proc/self/task")


def small_product(seed=0):
    """A matrix and tokens of 24 chunks, and their product."""
    random = np.random.default_rng(seed)
    q, scales = reference.random_matrix(random, (3, 1024, 64), 4, 32)
    x_TK = random.standard_normal((9, 64)).astype(np.float32)
    chosen_T = np.arange(9) % 3
    expected = np.stack([reference.product(x_TK[[t]], q[e], scales[e])[0] for t, e in enumerate(chosen_T)])
    return reference.packed(q, scales, 4), x_TK, Grouping.of(chosen_T, 3), expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits_every_time(threads):
    matrix, x_TK, grouping, expected = small_product()
    with Core(threads=threads) as core:
        for _ in range(100):
            np.testing.assert_array_equal(core.product(matrix, core.quantise(x_TK, 32), grouping), expected)


def test_callers_from_several_threads_take_turns():
    cases = [small_product(seed) for seed in range(3)]
    wrong = []

    def call(case):
        matrix, x_TK, grouping, expected = case
        for _ in range(30):
            if not (core.product(matrix, core.quantise(x_TK, 32), grouping) == expected).all():
                wrong.append(case)

    with Core(threads=3) as core:
        callers = [threading.Thread(target=call, args=(case,)) for case in cases]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


def test_idle_threads_use_no_processor_time():
    matrix, x_TK, grouping, _ = small_product()
    with Core(threads=4) as core:
        core.product(matrix, core.quantise(x_TK, 32), grouping)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.05


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")
def test_threads_end_with_the_core_closed_or_lost():
    before = len(os.listdir(TASKS))
    core = Core(threads=4)
    lost = Core(threads=3)
    assert len(os.listdir(TASKS)) == before + 5
    core.close()
    core.close()
    del lost
    assert len(os.listdir(TASKS)) == before
    with pytest.raises(ValueError, match="closed"):
        core.quantise(np.zeros((1, 32), dtype=np.float32))


FORKING = """
import os, sys, threading
sys.path[:0] = sys.argv[1:]
from test_core_threads import small_product
from openzaya.engine.core.products import Core

matrix, x_TK, grouping, expected = small_product()
core = Core(threads=3)
# A child forked while another thread imports would wait for that import for ever, and numpy imports some parts late.
core.product(matrix, core.quantise(x_TK, 32), grouping)
over = threading.Event()

def step():
    while not over.is_set():
        core.product(matrix, core.quantise(x_TK, 32), grouping)

# Forked while another thread is in the middle of a product.
stepping = threading.Thread(target=step)
stepping.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if (core.product(matrix, core.quantise(x_TK, 32), grouping) == expected).all() else 3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
over.set()
stepping.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_with_threads_of_its_own():
    here = Path(__file__).parent
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_measured_number_of_threads_is_the_fewest_that_are_as_fast():
    assert products._fewest({1: 10.0, 2: 19.5, 4: 20.0, 8: 12.0}) == 2
    assert products._fewest({1: 10.0, 2: 9.0}) == 1
    with Core() as core:
        assert 1 <= core.threads <= (os.cpu_count() or 1)
