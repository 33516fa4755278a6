"""Which sequences compute what in the next step: continuous batching over a bounded pool of state.

A prompt is computed once, in chunks, and kept as a `Prefix`; every sequence with that prompt starts as a fork of it.
What several prompts begin with is computed once too: one of them leaves its state where they part, and the others go on
from there. Decoding rows join and leave at any step. Where pages run out, kept prefixes go first (least recently used),
then the youngest work is put back in the queue; it computes its tokens again later and, because chance depends only on
a sequence's seed and place, goes on as if nothing had happened.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openzaya.engine.constraint import Matcher
from openzaya.engine.executor import Executor, PromptChunk, StepBatch
from openzaya.engine.params import SamplingParams
from openzaya.engine.prefixes import Job, Node, Prefix, PrefixTree
from openzaya.engine.sampling import TokenLogprobs
from openzaya.engine.state import PAGE

FinishReason = Literal["stop", "length", "cancelled"]

KEPT_PREFIXES = 128
_JOBS = 64
_WORTH_KEEPING = PAGE
"""Tokens that a state must save to be kept where prompts part: a chunk that ends there costs about as much."""

_IDLE_CHUNKS = 8
"""With nothing decoding, no one waits for the step to end, so prompts get this many times their usual tokens."""


@dataclass(slots=True, eq=False)
class Generation:
    """One reply being generated: its prompt, how it is sampled, and what it has so far."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    limit: int
    """Tokens after which it ends with "length"."""
    stop_ids: frozenset[int] = frozenset()
    keep_state: bool = False
    """Keep the state at the end as a prefix, so that a longer prompt can go on from there."""
    matcher: Matcher | None = None
    """What holds the reply to a form."""
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int = 0
    """Prompt tokens that were not computed for this reply."""
    finish_reason: FinishReason | None = None
    number: int = -1
    slot: int | None = None
    key: tuple[int, ...] = ()
    """The tokens to compute before the next one can be sampled: the prompt, after a preemption also the reply."""
    node: Node | None = None
    """Where it waits for the state after `key`."""

    def may_go_on_after(self, token: int) -> bool:
        """Whether limit and form leave room after its newest token."""
        if self.matcher is not None:
            self.matcher.accept(token)
            if self.matcher.failed:
                return False
        return len(self.generated) < self.limit


@dataclass(frozen=True, slots=True)
class Emission:
    """One new token of a generation, which may be its last."""

    generation: Generation
    token_id: int


class Scheduler:
    """Owns the waiting, the running and the kept; `step` moves all of them on by one step of the executor."""

    def __init__(self, executor: Executor, *, max_batch: int = 256, prefill_chunk: int = 512) -> None:
        """`max_batch` bounds the decoding rows, `prefill_chunk` the prompt tokens in a step in which rows decode.

        The executor's pool needs `slots_for(max_batch)` slots. Raises ValueError for a bound below 1.
        """
        for name, value in (("max_batch", max_batch), ("prefill_chunk", prefill_chunk)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.executor, self.pool = executor, executor.pool
        self.max_batch, self.prefill_chunk = max_batch, prefill_chunk
        self.waiting: deque[Generation] = deque()
        self.running: dict[int, Generation] = {}
        """By number, so in the order of arrival but for preempted ones that came back."""
        self._jobs: dict[Node, Job] = {}
        self._tree = PrefixTree()
        self._started: list[tuple[Generation, Tensor]] = []
        self._numbers = itertools.count()
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, generation: Generation) -> None:
        """Queue a generation, which must fit in the pool when it runs alone (`limit_for` sees to that)."""
        assert len(generation.prompt) + generation.limit <= self.pool.tokens
        generation.number = next(self._numbers)
        generation.key = generation.prompt
        generation.node = self._tree.expect(generation.key)
        self.waiting.append(generation)

    def cancel(self, generation: Generation) -> None:
        """End a generation now and free its state; nothing where it has ended already."""
        if generation.finish_reason is None:
            self.finish(generation, "cancelled")

    def finish(self, generation: Generation, reason: FinishReason) -> None:
        """End a generation between steps, for a reason that only its reader sees (a stop string, a cancel)."""
        generation.finish_reason = reason
        if generation.slot is not None:
            self._leave(generation)
            return
        node = self._stop_waiting(generation)
        if node in self._jobs and not node.expected:
            self._drop_job(self._jobs[node])

    def exchange(self, executor: Executor) -> None:
        """Go on with the weights of `executor`: on the pool in use, or on its own, where replies are computed anew.

        Raises ValueError where a reply in progress or waiting can never fit in that pool.
        """
        tokens = max((len(g.prompt) + g.limit for g in (*self.waiting, *self.running.values())), default=0)
        if tokens > executor.pool.tokens:
            raise ValueError(
                f"a reply in progress may need {tokens:,} tokens and the state of the new weights has room for "
                f"{executor.pool.tokens:,}; wait for it, or give the engine more memory"
            )
        self.drop_prefixes()
        self.executor = executor
        if executor.pool is not self.pool:
            while self.running:
                self._put_back_youngest()
            self.pool = executor.pool

    def drop_prefixes(self) -> None:
        """Forget all kept prompts and begin those in progress again, as after a change of weights."""
        while self.evict():
            pass
        for job in list(self._jobs.values()):
            self._drop_job(job)

    # ---- one step ----

    def step(self) -> list[Emission]:
        """One token for each running generation, and a share of the waiting prompts."""
        self._admit()
        self._make_room()
        running = list(self.running.values())
        jobs = list(self._chunks_of_jobs(self.prefill_chunk * (1 if running else _IDLE_CHUNKS)))
        result = self.executor.step(
            StepBatch(
                decode_slots=np.array([generation.slot for generation in running], dtype=np.int64),
                decode_ids=np.array([generation.generated[-1] for generation in running], dtype=np.int64),
                chunks=[chunk for _, _, chunk in jobs],
            )
        )
        for (job, parting, _), logits in zip(jobs, result.chunk_logits):
            if parting is not None:
                self._leave_snapshot(job, parting, logits)
            elif logits is not None:
                del self._jobs[job.node]
                self._keep(job.node, Prefix(job.slot, logits, job.reused))
                self._tree.end(job)
        self._admit()
        started, self._started = self._started, []
        emissions = self._draw(running, result.decode_logits)
        for generation, _ in started:
            self.running[generation.number] = generation
        if started:
            emissions += self._draw(
                [generation for generation, _ in started], torch.stack([logits for _, logits in started])
            )
        return emissions

    def _draw(self, generations: Sequence[Generation], logits: Tensor | None) -> list[Emission]:
        if not generations:
            return []
        assert logits is not None
        tokens = self._sample(generations, logits)
        held = [(row, g.matcher) for row, g in enumerate(generations) if g.matcher is not None and g.matcher.holds]
        if held:
            rows = [row for row, _ in held]
            narrowed = torch.stack([matcher.narrowed(logits[row]) for row, matcher in held])
            tokens[rows] = self._sample([generations[row] for row in rows], narrowed)
        self._record_logprobs(generations, logits, tokens)
        emissions = []
        for generation, token in zip(generations, tokens.tolist()):
            generation.generated.append(token)
            emissions.append(Emission(generation, token))
            if token in generation.stop_ids:
                generation.finish_reason = "stop"
            elif not generation.may_go_on_after(token):
                generation.finish_reason = "length"
            if generation.finish_reason is not None:
                self._leave(generation)
        return emissions

    def _sample(self, generations: Sequence[Generation], logits: Tensor) -> np.ndarray:
        params = [generation.params for generation in generations]
        seeds = np.array([generation.seed for generation in generations], dtype=np.uint64)
        places = np.array([len(generation.generated) for generation in generations], dtype=np.int64)
        return self.executor.sample(logits, params, seeds, places)

    def _record_logprobs(self, generations: Sequence[Generation], logits: Tensor, tokens: np.ndarray) -> None:
        rows = [row for row, generation in enumerate(generations) if generation.params.logprobs is not None]
        if rows:
            counts = [generations[row].params.logprobs or 0 for row in rows]
            # All rows are the scores as the step left them, of which an executor may know more.
            wanted = logits if len(rows) == len(generations) else logits[rows]
            for row, record in zip(rows, self.executor.logprobs(wanted, tokens[rows], counts)):
                generations[row].logprobs.append(record)

    def _leave(self, generation: Generation) -> None:
        slot = generation.slot
        assert slot is not None
        del self.running[generation.number]
        generation.slot = None
        if generation.keep_state and generation.finish_reason != "cancelled":
            held = self._tree.node((generation.prompt + tuple(generation.generated))[: self.pool.lengths[slot]])
            if held.prefix is None:
                self._keep(held, Prefix(slot, None, 0, claimed=True))
                return
        self.pool.close(slot)

    # ---- prompts ----

    def _admit(self) -> None:
        """Start what fits, in order of arrival: sequences of known prompts decode, unknown prompts are computed."""
        queued_tokens = sum(len(job.key) - int(self.pool.lengths[job.slot]) for job in self._jobs.values())
        for generation in list(self.waiting):
            if len(self.running) + len(self._started) >= self.max_batch:
                return
            node = generation.node
            assert node is not None
            if node.prefix is not None and node.prefix.logits is not None:
                if not self._start(generation, node):
                    return
            elif node not in self._jobs:
                if queued_tokens >= self.prefill_chunk * _IDLE_CHUNKS or len(self._jobs) >= _JOBS:
                    continue
                base = self._tree.longest(node)
                if self._shared_soon(node, base):
                    continue
                if not self._begin_job(generation, node, base):
                    return
                queued_tokens += len(generation.key)

    def _start(self, generation: Generation, node: Node) -> bool:
        """Fork the prefix at `node` for `generation`, or hand it over where memory is too short for both."""
        self._tree.used(node)
        prefix = node.prefix
        assert prefix is not None
        assert prefix.logits is not None
        slot = self.pool.fork(prefix.slot)
        while slot is None and self.evict(keep=node):
            slot = self.pool.fork(prefix.slot)
        if slot is None and (self.running or self._started or len(self._jobs)):
            return False
        if slot is None:
            slot = self._tree.forget(node).slot
        generation.slot = slot
        if not generation.generated:
            generation.cached_tokens = node.depth if prefix.claimed else prefix.reused
        prefix.claimed = True
        self._stop_waiting(generation)
        self._started.append((generation, prefix.logits))
        return True

    def _stop_waiting(self, generation: Generation) -> Node:
        """Take `generation` from the queue; returns where it waited."""
        self.waiting.remove(generation)
        node, generation.node = generation.node, None
        assert node is not None
        self._tree.forgo(node)
        return node

    def _shared_soon(self, node: Node, base: Node | None) -> bool:
        """Whether a prompt being computed has yet to come to where the one at `node` parts from it."""
        known = base.depth if base is not None else 0
        return any(
            above.depth - known >= _WORTH_KEEPING
            and any(self.pool.lengths[job.slot] < above.depth for job in above.jobs)
            for above in node.upwards()
        )

    def _begin_job(self, generation: Generation, node: Node, base: Node | None) -> bool:
        """Reserve the whole prompt's pages and start to compute it, from the longest kept prefix of it."""
        slot = self._opened(base)
        if slot is None:
            return False
        # Every running row may need a page soon; a prompt that took the last one would only be put back.
        spare = len(self.running) + len(self._started)
        while True:
            enough = self.pool.free_pages >= self._missing_pages(slot, len(generation.key)) + spare
            if enough and self.pool.reserve(slot, len(generation.key)):
                break
            if not self.evict():
                self.pool.close(slot)
                return False
        reused = int(self.pool.lengths[slot])
        job = self._jobs[node] = Job(node, generation.key, slot, generation.number, reused, snapshot=reused)
        self._tree.begin(job)
        return True

    def _opened(self, base: Node | None) -> int | None:
        if base is not None and base.prefix is not None:
            self._tree.used(base)
            slot = self.pool.fork(base.prefix.slot)
            if slot is not None:
                return slot
        slot = self.pool.open()
        while slot is None and self.evict():
            slot = self.pool.open()
        return slot

    def _missing_pages(self, slot: int, length: int) -> int:
        return -(-length // PAGE) - int(self.pool.page_counts[slot])

    def _chunks_of_jobs(self, budget: int) -> Iterator[tuple[Job, int | None, PromptChunk]]:
        """Chunks for the oldest jobs first, `budget` tokens in all; with the length of the prompt at which others part
        from it where the chunk ends there."""
        for job in sorted(self._jobs.values(), key=lambda job: job.number):
            if budget <= 0:
                return
            done = int(self.pool.lengths[job.slot])
            end, parting, scored = min(done + budget, len(job.key)), None, False
            # Upwards, so the last that qualifies is the nearest.
            for above in job.node.upwards():
                if above.depth <= done:
                    break
                if above.depth <= end and above.prefix is None and above.depth - job.snapshot >= _WORTH_KEEPING:
                    end, parting, scored = above.depth, above.depth, above.expected > 0
            budget -= end - done
            yield job, parting, PromptChunk(job.slot, job.key[done:end], wants_logits=scored or end == len(job.key))

    def _leave_snapshot(self, job: Job, depth: int, logits: Tensor | None) -> None:
        """Keep the state of `job` as it is after `depth` tokens, for others; without memory for it, go on."""
        job.snapshot = depth
        slot = self.pool.fork(job.slot)
        if slot is not None:
            self._keep(self._tree.node(job.key[:depth]), Prefix(slot, logits, job.reused, claimed=True))

    def _drop_job(self, job: Job) -> None:
        del self._jobs[job.node]
        self._tree.end(job)
        self.pool.close(job.slot)

    # ---- memory ----

    def keep_prompt(self, ids: tuple[int, ...], slot: int, logits: Tensor) -> None:
        """Take over a prompt that was computed beside the schedule, to start replies from."""
        self._keep(self._tree.node(ids), Prefix(slot, logits, 0))

    def _keep(self, node: Node, prefix: Prefix) -> None:
        replaced = self._tree.keep(node, prefix)
        if replaced is not None:
            self.pool.close(replaced.slot)
        while len(self._tree) > KEPT_PREFIXES:
            self.evict()

    def evict(self, keep: Node | None = None) -> bool:
        """Forget the least recently used prefix but that at `keep`; False where there is none."""
        node = self._tree.oldest(besides=keep)
        if node is None:
            return False
        self.pool.close(self._tree.forget(node).slot)
        return True

    def _make_room(self) -> None:
        """A place for one more token in each running sequence; the youngest work gives way where there is none."""
        running = list(self.running.values())
        slots = np.array([generation.slot for generation in running], dtype=np.int64)
        full = self.pool.lengths[slots] == self.pool.page_counts[slots] * PAGE
        needy = [running[place] for place in np.nonzero(full)[0]]
        for generation in sorted(needy, key=lambda generation: generation.number):
            if generation.slot is None:
                continue
            while not self.pool.reserve(generation.slot, int(self.pool.lengths[generation.slot]) + 1):
                if self.evict():
                    continue
                self._put_back_youngest()
                if generation.slot is None:
                    break

    def _put_back_youngest(self) -> None:
        youngest = max(self.running.values(), key=lambda generation: generation.number)
        job = max(self._jobs.values(), key=lambda job: job.number, default=None)
        if job is not None and job.number > youngest.number:
            self._drop_job(job)
            return
        assert youngest.slot is not None
        self.pool.close(youngest.slot)
        del self.running[youngest.number]
        youngest.slot = None
        youngest.key = youngest.prompt + tuple(youngest.generated)
        youngest.node = self._tree.expect(youngest.key)
        self.waiting.appendleft(youngest)
        self.preemptions += 1


def slots_for(max_batch: int) -> int:
    """Slots that a scheduler of `max_batch` rows uses at most: rows, prompts in progress, and kept prefixes."""
    return max_batch + _JOBS + KEPT_PREFIXES + 1
