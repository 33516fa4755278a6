"""Decoding with static shapes: the same step for any rows, lengths and routing, so that a GPU can replay it as a graph.

Rows are filled up to one of a few sizes, `BUCKETS`; ids, slots, lengths and page tables are written into tensors that
stay where they are, and nothing in between waits for the device. On CUDA and ROCm the step of each size is captured
once as a graph and then replayed: one launch in place of thousands. Elsewhere the same code runs on the same tensors,
step by step. Tokens are drawn in the same way, from chance that the host computes (`sampling.uniforms`).

B rows of a bucket, K key-value heads, G query heads of each, C channels, E places of a page, W pages of a table,
V vocabulary.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from openzaya.engine import sampling
from openzaya.engine.paged import OneToken
from openzaya.engine.params import SamplingParams
from openzaya.engine.state import PAGE, StatePool, pages_for
from openzaya.model.decoder import ZayaForCausalLM

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_MORE = 128
"""Beyond the buckets, rows are filled up to a multiple of this."""
_FEWEST_PAGES = 8
_log = logging.getLogger(__name__)


class StaticDecode:
    """The decoding steps of one model over one pool, which must have a `filler`."""

    def __init__(self, model: ZayaForCausalLM, pool: StatePool) -> None:
        assert pool.filler
        self.model, self.pool = model, pool
        on_gpu = pool.device.type == "cuda"
        self.graphs = Graphs(pool.device) if on_gpu else None
        self.kernel = on_gpu and importlib.util.find_spec("triton") is not None
        self._steps: dict[tuple[int, int], _Step] = {}
        self._draws: dict[tuple[int, bool], _Draw] = {}
        self._scores = torch.empty(0, model.config.vocab_size, dtype=torch.float32, device=pool.device)
        self._last: _Step | None = None

    @torch.inference_mode()
    def logits(self, slots: np.ndarray, ids: np.ndarray) -> Tensor:
        """Scores after one more token in each of `slots`: (rows, V) float32, overwritten by the next call."""
        pages = pages_for(int(self.pool.lengths[slots].max()) + 1)
        width = self.pool.pages_a_slot if self.kernel else _power_of_two(max(pages, _FEWEST_PAGES))
        key = bucket(len(slots)), min(width, self.pool.pages_a_slot)
        if key not in self._steps:
            self._steps[key] = _Step(self, *key)
        step = self._last = self._steps[key]
        step.fill(slots, ids, pages)
        step.run()
        return step.scores_BV[: len(slots)]

    @torch.inference_mode()
    def sample(
        self, logits_BV: Tensor, params_B: Sequence[SamplingParams], seeds_B: np.ndarray, places_B: np.ndarray
    ) -> np.ndarray:
        """The tokens that `sampling.sample` gives, for scores of the last step drawn without a wait in between."""
        step, rows = self._last, len(params_B)
        if step is None or logits_BV.data_ptr() != step.scores_BV.data_ptr() or bucket(rows) != len(step.scores_BV):
            return sampling.sample(logits_BV, params_B, seeds_B, places_B)
        key = id(step), any(map(sampling.is_filtered, params_B))
        if key not in self._draws:
            self._draws[key] = _Draw(step, self.graphs, filtered=key[1])
        draw = self._draws[key]
        draw.fill(params_B, sampling.uniforms(seeds_B, places_B))
        draw.run()
        tokens_B = draw.tokens_B[:rows].cpu().numpy()
        open_B = np.nonzero(tokens_B < 0)[0]
        if len(open_B):
            chosen = [params_B[row] for row in open_B.tolist()]
            rows_there = torch.from_numpy(open_B).to(logits_BV.device)
            tokens_B[open_B] = sampling.sample(logits_BV[rows_there], chosen, seeds_B[open_B], places_B[open_B])
        return tokens_B

    def scores_for(self, rows: int) -> Tensor:
        """A place for the scores of a step of `rows`; steps of fewer rows share it."""
        if rows > len(self._scores):
            self._scores = self._scores.new_empty(_power_of_two(rows), self._scores.shape[1])
        return self._scores[:rows]


class Graphs:
    """Captures functions as graphs of one GPU, which share memory; where one cannot be, it says so and gives up."""

    def __init__(self, device: torch.device) -> None:
        # A stream of this device: the one that torch would take belongs to the device that captured first.
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._memory = torch.cuda.graph_pool_handle()
        self.refused = False

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `function`, which works on tensors that stay, and must be harmless to run now."""
        if self.refused:
            return function
        with torch.cuda.device(self._device):
            self._warm_up(function)
            graph = torch.cuda.CUDAGraph()
            try:
                # The inner context does not give the stream back where the capture fails; the outer one does.
                with (
                    torch.cuda.stream(torch.cuda.current_stream()),
                    torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"),
                ):
                    function()
            except RuntimeError as error:
                torch.cuda.synchronize()
                self.refused = True
                reason = str(error).strip().split("\n")[0]
                _log.warning(
                    "decoding goes on without graphs, which takes longer: a step waits for the GPU (%s)", reason
                )
                return function
        return graph.replay

    def _warm_up(self, function: Callable[[], None]) -> None:
        """Kernels are compiled and libraries made ready, on the stream that captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(self._stream)


class _Step:
    """One forward of `rows` rows, from ids to `scores_BV`."""

    def __init__(self, decode: StaticDecode, rows: int, width: int) -> None:
        pool = decode.pool
        self._decode, self._pool = decode, pool
        self._idle = np.array([[0], [pool.slots], [0]]).repeat(rows, axis=1)
        self._inputs = torch.from_numpy(self._idle).to(pool.device)
        """Ids, slots and lengths, (3, B)."""
        self._tables_BW = torch.full((rows, width), pool.pages, dtype=torch.int32, device=pool.device)
        self.scores_BV = decode.scores_for(rows)
        # Every row is a filler for now, so that trying the step out changes no sequence.
        self.run = self._forward if decode.graphs is None else decode.graphs.captured(self._forward)

    def fill(self, slots: np.ndarray, ids: np.ndarray, pages: int) -> None:
        """Set the rows; `pages` is how many the longest has with its new token."""
        pool, rows = self._pool, len(slots)
        inputs = self._idle.copy()
        inputs[:, :rows] = ids, slots, pool.lengths[slots]
        tables = np.full((len(self._tables_BW), pages), pool.pages, dtype=np.int32)
        held = np.arange(pages) < pool.page_counts[slots][:, None]
        tables[:rows] = np.where(held, pool.tables[slots, :pages], pool.pages)
        self._inputs.copy_(torch.from_numpy(inputs))
        # What stays beyond `pages` names pages of earlier steps, which hold numbers and are not looked at.
        self._tables_BW[:, :pages].copy_(torch.from_numpy(tables))

    @torch.inference_mode()
    def _forward(self) -> None:
        model = self._decode.model
        ids_B, slots_B, lengths_B = self._inputs.unbind(0)
        view = StaticView(self._pool, slots_B, lengths_B, self._tables_BW, kernel=self._decode.kernel)
        self.scores_BV.copy_(model.logits(model.hidden(ids_B[:, None], cache=view)[:, 0]))


class StaticView(OneToken):
    """Attention over all pages that the tables have room for, of which each row sees its own."""

    def __init__(self, pool: StatePool, slots_B: Tensor, lengths_B: Tensor, tables_BW: Tensor, *, kernel: bool) -> None:
        """`tables_BW` (int32) has in every place a page that holds numbers, a row's own ones first and in order."""
        pages_B = tables_BW.gather(1, (lengths_B // PAGE)[:, None])[:, 0].long()
        super().__init__(pool, slots_B, lengths_B, pages_B)
        self._tables_BW, self._kernel = tables_BW, kernel
        self._biases: dict[int | None, Tensor] = {}

    def _attend(self, layer: int, q_BKGC: Tensor) -> Tensor:
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        window = self._pool.config.window(layer)
        if self._kernel:
            from openzaya.engine.paged_kernel import paged_attention

            return paged_attention(q_BKGC, keys, values, self._tables_BW, self._lengths_B, window)
        q_BKGC, numbers = q_BKGC * q_BKGC.shape[-1] ** -0.5, self._tables_BW.long()
        scores_BKGT = torch.matmul(q_BKGC, _in_order(keys[numbers]).transpose(-1, -2)).float()
        weights_BKGT = torch.softmax(scores_BKGT + self._bias(window), dim=-1)
        return torch.matmul(weights_BKGT.to(values.dtype), _in_order(values[numbers])).to(q_BKGC.dtype)

    def _bias(self, window: int | None) -> Tensor:
        """(B, 1, 1, W * E): 0 where the row may look, minus infinity elsewhere."""
        if window not in self._biases:
            lengths_B1 = self._lengths_B[:, None]
            place_T = torch.arange(self._tables_BW.shape[1] * PAGE, device=lengths_B1.device)
            seen_BT = place_T <= lengths_B1
            if window is not None:
                seen_BT = seen_BT & (lengths_B1 - place_T < window)
            bias_BT = torch.zeros(seen_BT.shape, device=seen_BT.device).masked_fill_(~seen_BT, float("-inf"))
            self._biases[window] = bias_BT[:, None, None]
        return self._biases[window]


class _Draw:
    """Draws a token for each row of a step; -1 where only the sorted whole vocabulary could tell."""

    def __init__(self, step: _Step, graphs: Graphs | None, *, filtered: bool) -> None:
        self._scores_BV, self._filtered = step.scores_BV, filtered
        rows, device = len(step.scores_BV), step.scores_BV.device
        # A filler draws the likeliest token.
        self._idle = np.array([[0.5], [0.0], [1.0], [1.0], [0.0]]).repeat(rows, axis=1)
        self._inputs = torch.from_numpy(self._idle).to(device)
        self.tokens_B = torch.zeros(rows, dtype=torch.long, device=device)
        self.run = self._draw if graphs is None else graphs.captured(self._draw)

    def fill(self, params_B: Sequence[SamplingParams], chance_B: np.ndarray) -> None:
        vocabulary = self._scores_BV.shape[1]
        inputs = self._idle.copy()
        columns = [
            (chance, row.temperature, min(row.top_k or vocabulary, vocabulary), row.top_p, row.min_p)
            for chance, row in zip(chance_B.tolist(), params_B)
        ]
        inputs[:, : len(columns)] = np.array(columns).T
        self._inputs.copy_(torch.from_numpy(inputs))

    @torch.inference_mode()
    def _draw(self) -> None:
        chance_B, temperature_B, top_k_B, top_p_B, min_p_B = self._inputs.unbind(0)
        scores_BV = self._scores_BV - self._scores_BV.amax(dim=-1, keepdim=True)
        likeliest_B, greedy_B = scores_BV.argmax(dim=-1), temperature_B == 0
        scores_BV = scores_BV / temperature_B.masked_fill(greedy_B, 1).float()[:, None]
        drawn_B = sampling.by_inverse(scores_BV, chance_B)
        if self._filtered:
            filters = sampling.Filters(top_k_B.long(), top_p_B, min_p_B)
            candidates = min(sampling.FIRST_CANDIDATES, scores_BV.shape[1])
            among_B, certain_B = sampling.draw_filtered(scores_BV, chance_B, filters, candidates)
            plain_B = (filters.top_k == scores_BV.shape[1]) & (top_p_B >= 1) & (min_p_B <= 0)
            drawn_B = torch.where(plain_B, drawn_B, among_B.masked_fill(~certain_B, -1))
        self.tokens_B.copy_(torch.where(greedy_B, likeliest_B, drawn_B))


def bucket(rows: int) -> int:
    """The number of rows that a step of `rows` is filled up to."""
    return next((size for size in BUCKETS if size >= rows), -(-rows // _MORE) * _MORE)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _in_order(pages_BWKEC: Tensor) -> Tensor:
    """Pages of each row as one sequence of vectors, (B, K, W * E, C)."""
    return pages_BWKEC.transpose(1, 2).flatten(2, 3)
