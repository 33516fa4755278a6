from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from openzaya.engine.torch_threads import torch_threads


def test_no_count_leaves_torch_alone():
    before = torch.get_num_threads()
    with torch_threads(None):
        assert torch.get_num_threads() == before


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_of_two_borrowers_the_latest_that_goes_on_decides_and_the_last_gives_back(first_ends_first):
    before, first, second = torch.get_num_threads(), ExitStack(), ExitStack()
    first.enter_context(torch_threads(before + 1))
    second.enter_context(torch_threads(before + 2))
    assert torch.get_num_threads() == before + 2
    (first if first_ends_first else second).close()
    assert torch.get_num_threads() == (before + 2 if first_ends_first else before + 1)
    (second if first_ends_first else first).close()
    assert torch.get_num_threads() == before


def test_less_than_one_thread_is_refused():
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"), torch_threads(0):
        pass
