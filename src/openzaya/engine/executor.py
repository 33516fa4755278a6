"""The seam between scheduling and computation: one step over many sequences, `Executor.step(StepBatch)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from openzaya.engine import sampling
from openzaya.engine.paged import DecodeView, PrefillView
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import TokenLogprobs
from openzaya.engine.state import StatePool
from openzaya.engine.static_step import StaticDecode
from openzaya.model.decoder import ZayaForCausalLM


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """The next tokens of a prompt, whose pages are reserved."""

    slot: int
    ids: Sequence[int]
    wants_logits: bool
    """Whether the chunk ends its prompt, so that the scores of the next token are needed."""
    everywhere: bool = False
    """Whether scores are wanted after each of its tokens."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one step computes: one more token for each decoding sequence, and chunks of prompts."""

    decode_slots: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    decode_ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    chunks: Sequence[PromptChunk] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """Scores of the next tokens, float32: (rows, V) of the decoding rows, and for each chunk that wanted them (V), or
    (tokens, V) where it wanted them everywhere.

    All but those (V) may be overwritten by the next step.
    """

    decode_logits: Tensor | None
    chunk_logits: Sequence[Tensor | None]


class Executor(Protocol):
    """Runs steps over the state in a pool; a step moves the lengths of its slots on."""

    pool: StatePool

    def step(self, batch: StepBatch) -> StepResult: ...

    def sample(
        self, logits_BV: Tensor, params_B: Sequence[SamplingParams], seeds_B: np.ndarray, places_B: np.ndarray
    ) -> np.ndarray:
        """The tokens that `engine.sampling.sample` gives for the same arguments."""
        ...

    def logprobs(self, logits_BV: Tensor, tokens_B: np.ndarray, counts_B: Sequence[int]) -> list[TokenLogprobs]:
        """What `engine.sampling.logprobs` gives for the same arguments."""
        ...


class TorchExecutor:
    """Steps through the model itself, one forward for all decoding rows and one for each group of like chunks.

    With a pool that has a `filler`, decoding has static shapes (`StaticDecode`), which a GPU replays as graphs; the
    scores of decoding rows then last until the next step.
    """

    def __init__(self, model: ZayaForCausalLM, pool: StatePool) -> None:
        self.model = model
        self.pool = pool
        self.static = StaticDecode(model, pool) if pool.filler else None

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> StepResult:
        decode_logits = self._decode(batch.decode_slots, batch.decode_ids) if len(batch.decode_slots) else None
        chunk_logits: list[Tensor | None] = [None] * len(batch.chunks)
        for group in _alike(batch.chunks, self.pool.lengths):
            for place, logits in zip(group, self._prefill([batch.chunks[place] for place in group])):
                chunk_logits[place] = logits
        return StepResult(decode_logits, chunk_logits)

    def sample(
        self, logits_BV: Tensor, params_B: Sequence[SamplingParams], seeds_B: np.ndarray, places_B: np.ndarray
    ) -> np.ndarray:
        draw = sampling.sample if self.static is None else self.static.sample
        return draw(logits_BV, params_B, seeds_B, places_B)

    def logprobs(self, logits_BV: Tensor, tokens_B: np.ndarray, counts_B: Sequence[int]) -> list[TokenLogprobs]:
        return sampling.logprobs(logits_BV, tokens_B, counts_B)

    def _decode(self, slots: np.ndarray, ids: np.ndarray) -> Tensor:
        if self.static is not None:
            logits_BV = self.static.logits(slots, ids)
        else:
            input_ids = torch.from_numpy(ids).to(self.pool.device)[:, None]
            logits_BV = self.model.logits(self.model.hidden(input_ids, cache=DecodeView(self.pool, slots))[:, 0])
        self.pool.lengths[slots] += 1
        return logits_BV

    def _prefill(self, chunks: Sequence[PromptChunk]) -> list[Tensor | None]:
        slots = np.array([chunk.slot for chunk in chunks], dtype=np.int64)
        counts = np.array([len(chunk.ids) for chunk in chunks], dtype=np.int64)
        ids_BS = np.zeros((len(chunks), counts.max()), dtype=np.int64)
        for row, chunk in enumerate(chunks):
            ids_BS[row, : len(chunk.ids)] = chunk.ids
        input_ids = torch.from_numpy(ids_BS).to(self.pool.device)
        hidden_BSD = self.model.hidden(input_ids, cache=PrefillView(self.pool, slots, counts))
        self.pool.lengths[slots] += counts
        wanted = [row for row, chunk in enumerate(chunks) if chunk.wants_logits and not chunk.everywhere]
        scores = iter(self.model.logits(hidden_BSD[wanted, counts[wanted] - 1])) if wanted else iter(())
        return [
            self.model.logits(hidden_BSD[row, : counts[row]])
            if chunk.everywhere
            else next(scores)
            if chunk.wants_logits
            else None
            for row, chunk in enumerate(chunks)
        ]


def _alike(chunks: Sequence[PromptChunk], lengths: np.ndarray) -> list[list[int]]:
    """Places of chunks to compute together: none padded to twice its length, first chunks apart from later ones.

    First chunks need no earlier keys; one later chunk among them would make all of them look for some.
    """
    groups: list[list[int]] = []
    for fresh in (True, False):
        longest = 0
        places = [place for place, chunk in enumerate(chunks) if (lengths[chunk.slot] == 0) == fresh]
        for place in sorted(places, key=lambda place: len(chunks[place].ids), reverse=True):
            if 2 * len(chunks[place].ids) < longest or not longest:
                longest = len(chunks[place].ids)
                groups.append([])
            groups[-1].append(place)
    return groups
