"""One more executor behind the engine's seam: steps over quantised weights in the compiled core.

Decoding tokens and prompt chunks are one batch and go through the same products; what a token computes depends on its
own sequence alone, so a reply has the same bits in any batch, at any chunk length, forked or computed anew.

L layers, T tokens, V vocabulary, Q sequences, S tokens whose scores are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from openzaya.engine.core import draw, library
from openzaya.engine.core.batch import Batch
from openzaya.engine.core.plan import KV_TYPES, Plan, QuantisedWeights
from openzaya.engine.core.products import MOST_TOKENS, Core, address
from openzaya.engine.executor import PromptChunk, StepBatch, StepResult
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import TokenLogprobs
from openzaya.engine.state import PAGE, StatePool

__all__ = ["CompiledExecutor", "QuantisedWeights"]

_ALIGNMENT = 64


class CompiledExecutor:
    """Steps in the compiled core, one call each; weights stay where they are, in memory or in a mapped file.

    The scores of decoding rows last until the next step, which writes its own over them.
    """

    def __init__(self, weights: QuantisedWeights, pool: StatePool, core: Core) -> None:
        """Keys and values may be kept in float32, float16 or int8, as the pool has it. Raises ValueError for a pool
        of another kind or not on the CPU, for a shape that the core cannot run, and for weights that do not have the
        shape of their configuration."""
        if pool.keys.dtype not in KV_TYPES or pool.columns.dtype != torch.float32 or pool.device.type != "cpu":
            raise ValueError(
                f"the pool keeps {pool.keys.dtype} and {pool.columns.dtype} on {pool.device}; the compiled core needs "
                "float32 on the CPU, and keys and values in float32, float16 or int8"
            )
        self.pool, self._core = pool, core
        self.routing: list[np.ndarray] | None = None
        """Where it is a list, every step appends the class that each token chose in each layer, int32 (L, T)."""
        self.stage_seconds: np.ndarray | None = None
        """Where it is an array (one place for each of `library.STAGES`), every step adds the time of its parts."""
        self._plan = Plan(weights, pool)
        self._scratch = np.empty(0, dtype=np.uint8)
        self._logits_SV = np.empty((0, self._plan.vocabulary), dtype=np.float32)
        self._tops_SN = np.empty((0, -(-self._plan.vocabulary // library.BLOCK)), dtype=np.float32)

    def step(self, batch: StepBatch) -> StepResult:
        """Raises ValueError for a token outside the vocabulary, an empty chunk, and a slot without room for its own."""
        decoding, chunks = len(batch.decode_slots), batch.chunks
        if not decoding and not chunks:
            return StepResult(None, [])
        slots_Q = np.array([*batch.decode_slots, *(chunk.slot for chunk in chunks)], dtype=np.int64)
        counts_Q = np.array([1] * decoding + [len(chunk.ids) for chunk in chunks], dtype=np.int64)
        ids_T = np.concatenate([batch.decode_ids, *(chunk.ids for chunk in chunks)]).astype(np.int64)
        self._check(slots_Q, counts_Q, ids_T)
        placed = Batch.of(slots_Q, counts_Q, self.pool.lengths[slots_Q], self.pool.tables, PAGE)
        scored = [
            np.arange(decoding),
            *(_scored(chunk, end) for chunk, end in zip(chunks, placed.firsts_Q[decoding + 1 :])),
        ]
        logits_SV = torch.from_numpy(self._run(ids_T, placed, np.concatenate(scored)))
        self.pool.lengths[slots_Q] += counts_Q
        parts = logits_SV.split([len(places) for places in scored])
        # Copied, as a prompt keeps its scores and would keep those of all rows.
        chunk_logits = [
            part if chunk.everywhere else part[0].clone() if chunk.wants_logits else None
            for chunk, part in zip(chunks, parts[1:])
        ]
        return StepResult(parts[0] if decoding else None, chunk_logits)

    def sample(
        self, logits_BV: Tensor, params_B: Sequence[SamplingParams], seeds_B: np.ndarray, places_B: np.ndarray
    ) -> np.ndarray:
        """The tokens of `engine.sampling.sample` for the same arguments, drawn in the core."""
        return draw.sample(self._core, logits_BV, params_B, seeds_B, places_B, self._tops_of(logits_BV))

    def logprobs(self, logits_BV: Tensor, tokens_B: np.ndarray, counts_B: Sequence[int]) -> list[TokenLogprobs]:
        """As `engine.sampling.logprobs`, found in the core."""
        return draw.logprobs(self._core, logits_BV, tokens_B, counts_B, self._tops_of(logits_BV))

    def _tops_of(self, logits_BV: Tensor) -> np.ndarray | None:
        """What the last step found of these scores, where they are its first rows."""
        own = logits_BV.data_ptr() == address(self._logits_SV) and logits_BV.is_contiguous()
        return self._tops_SN if own else None

    def _check(self, slots_Q: np.ndarray, counts_Q: np.ndarray, ids_T: np.ndarray) -> None:
        """What C would follow into memory that is not the model's."""
        if counts_Q.min() < 1 or len(ids_T) > MOST_TOKENS:
            raise ValueError(
                f"a step of {len(ids_T)} tokens with a chunk of {counts_Q.min()}; a chunk has 1 token or more, a step "
                f"at most {MOST_TOKENS}"
            )
        if not 0 <= ids_T.min() <= ids_T.max() < self._plan.vocabulary:
            raise ValueError(
                f"tokens are {ids_T.min()} to {ids_T.max()}; the vocabulary has 0 to {self._plan.vocabulary - 1}"
            )
        if (self.pool.lengths[slots_Q] + counts_Q > self.pool.page_counts[slots_Q] * PAGE).any():
            raise ValueError("a sequence has no pages for its next tokens; reserve them in the pool first")

    def _run(self, ids_T: np.ndarray, placed: Batch, scored_S: np.ndarray) -> np.ndarray:
        """Scores (S, V) of what follows the tokens at `scored_S`."""
        self._plan.reach(int(placed.positions_T.max()))
        if len(scored_S) > len(self._logits_SV):
            self._logits_SV = np.empty((len(scored_S), self._plan.vocabulary), dtype=np.float32)
            self._tops_SN = np.empty((len(scored_S), self._tops_SN.shape[1]), dtype=np.float32)
        wanted = self._core.size("oz_step_bytes", self._plan.stored, placed.tokens, placed.pages, len(scored_S))
        scored_S = np.ascontiguousarray(scored_S, dtype=np.int32)
        chosen = None
        if self.routing is not None:
            self.routing.append(np.empty((self._plan.stored.layer_count, placed.tokens), dtype=np.int32))
            chosen = address(self.routing[-1])
        step = library.Step(
            placed.stored(), address(ids_T), len(scored_S), address(scored_S), address(self._logits_SV),
            address(self._tops_SN), chosen, None if self.stage_seconds is None else address(self.stage_seconds),
            self._room(wanted),
        )  # fmt: skip
        self._core.call("oz_run_step", self._plan.stored, step)
        return self._logits_SV[: len(scored_S)]

    def _room(self, wanted: int) -> int:
        """The address of `wanted` bytes, which later steps use again."""
        if wanted + _ALIGNMENT > len(self._scratch):
            self._scratch = np.empty(wanted + wanted // 4 + _ALIGNMENT, dtype=np.uint8)
        start = address(self._scratch)
        return start + -start % _ALIGNMENT


def _scored(chunk: PromptChunk, end: int) -> np.ndarray:
    """Which tokens of a step are followed by scores, of a chunk that ends before token `end`."""
    count = len(chunk.ids) if chunk.everywhere else int(chunk.wants_logits)
    return np.arange(end - count, end)
