"""How likely the model finds a prompt itself: the log probability of each of its tokens."""

from __future__ import annotations

import numpy as np

from openzaya.engine.executor import Executor, PromptChunk, StepBatch
from openzaya.engine.sampling import TokenLogprobs
from openzaya.engine.scheduler import Scheduler
from openzaya.engine.state import StatePool

_AT_ONCE = 64
"""Tokens between two steps of the replies beside it; the scores of a large vocabulary take a megabyte each."""


class Scoring:
    """One prompt being scored, a part at a time between the scheduler's steps.

    It computes every token, whatever is kept of the prompt, and leaves the whole to the scheduler: a reply to the same
    prompt starts from there. After an exchange of weights it begins again.
    """

    def __init__(self, ids: tuple[int, ...], top: int) -> None:
        """`top` is how many of the likeliest tokens are told at each place."""
        self.records: list[TokenLogprobs] = []
        """One for each token after the first, which nothing predicts."""
        self._ids, self._top = ids, top
        self._executor: Executor | None = None
        self._pool: StatePool | None = None
        self._slot: int | None = None

    def advance(self, scheduler: Scheduler) -> bool:
        """Score the next tokens; True once all are. While others hold the memory it computes nothing."""
        if self._executor is not scheduler.executor:
            self.release(scheduler)
            self.records, self._executor, self._pool = [], scheduler.executor, scheduler.pool
        if self._slot is None:
            self._slot = _place(scheduler, len(self._ids))
        if self._slot is None:
            return False
        done = int(scheduler.pool.lengths[self._slot])
        part, following = self._ids[done : done + _AT_ONCE], self._ids[done + 1 : done + 1 + _AT_ONCE]
        batch = StepBatch(chunks=[PromptChunk(self._slot, part, wants_logits=True, everywhere=True)])
        (scores,) = scheduler.executor.step(batch).chunk_logits
        assert scores is not None
        if following:
            counts = [self._top] * len(following)
            tokens = np.array(following, dtype=np.int64)
            self.records += scheduler.executor.logprobs(scores[: len(following)], tokens, counts)
        if len(following) == len(part):
            return False
        scheduler.keep_prompt(self._ids, self._slot, scores[-1].clone())
        self._slot = None
        return True

    def release(self, scheduler: Scheduler) -> None:
        """Give back what it holds of the memory."""
        if self._slot is not None and self._pool is scheduler.pool:
            self._pool.close(self._slot)
        self._slot = None


def _place(scheduler: Scheduler, tokens: int) -> int | None:
    """A slot with pages for so many tokens, for which kept prompts give way; None while others hold the memory."""
    pool = scheduler.pool
    while (slot := pool.open()) is None:
        if not scheduler.evict():
            return None
    while not pool.reserve(slot, tokens):
        if not scheduler.evict():
            pool.close(slot)
            return None
    return slot
