"""The engine's face: prompts in, replies out, from any thread or event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from openzaya.chat.tokenizer import Tokenizer
from openzaya.engine.constraint import Constraint, Grammars, Matcher
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import TokenLogprobs, derived_seed
from openzaya.engine.scheduler import Generation, Scheduler, slots_for
from openzaya.engine.scoring import Scoring
from openzaya.engine.served import ExecutorName, KVType, Served, ServedModel, serve_folder
from openzaya.engine.sizes import parse_bytes
from openzaya.engine.stream import Mailboxes, PieceReader
from openzaya.engine.text import ReplyText
from openzaya.engine.torch_threads import torch_threads
from openzaya.engine.weights import find_weights
from openzaya.engine.worker import EngineError, Listener, Output, Piece, Reply, Worker
from openzaya.model.decoder import ZayaForCausalLM

__all__ = ["Engine", "EngineError", "Output", "Piece", "Request"]


class Request:
    """One prompt being answered `n` times."""

    def __init__(self, worker: Worker, replies: Sequence[Reply]) -> None:
        self._worker, self._replies = worker, replies

    def result(self, timeout: float | None = None) -> list[Output]:
        """Wait for all replies. Raises what made one fail, and TimeoutError when one takes `timeout` seconds more."""
        return [reply.done.result(timeout) for reply in self._replies]

    def cancel(self) -> None:
        """End the replies before the next step; `result` then gives what there is of them."""
        self._worker.cancel(self._replies)


class Engine:
    """Continuous batching over one model, in a thread of its own and in a stated amount of memory.

    Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        model: str | Path | ZayaForCausalLM = "tiny",
        *,
        tokenizer: Tokenizer | None = None,
        memory: int | str = "4GiB",
        threads: int | None = None,
        max_batch: int = 256,
        prefill_chunk: int = 512,
        seed: int | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        numerics: str = "hf",
        executor: ExecutorName = "auto",
        kv_dtype: KVType = "auto",
        packed: bool | None = None,
    ) -> None:
        """`model` is what `load_model` takes, with `dtype`, `device` and `numerics`; or a model, used as it is.

        On the CPU a hub id is downloaded and quantised once, and kept (`find_weights` says when and where).
        A folder brings its tokenizer; beside a model give one where text is wanted. `memory` bounds the state of all
        sequences ("4GiB", or bytes); weights are not in it. `executor` "auto" computes with a quantised folder in the
        compiled core, from the mapped file and in float32, where nothing speaks against it, and with everything else in
        torch; "compiled" and "torch" leave no choice. `kv_dtype` is the type of keys and values in the core: "float16"
        (also "auto"), "float32" or "int8". `packed` keeps a quantised folder packed in torch, as None does on a GPU.
        `threads` are
        torch's, for the whole process until `close`, and the core's; None leaves torch's, and measures how many pay in
        the core.
        `max_batch` is the most sequences that decode together, `prefill_chunk` the prompt tokens computed beside them
        in a step. `seed` makes requests without a seed of their own repeatable. Raises ValueError where the model
        cannot be read or run so, or `memory` is too small for one page of state.
        """
        # Left unclosed, the stack gives torch its threads back when it is collected with the engine.
        self._borrowed = ExitStack()
        self._borrowed.enter_context(torch_threads(threads))
        self._loading: dict[str, Any] = {
            "executor": executor, "threads": threads, "kv_dtype": kv_dtype, "packed": packed,
            "dtype": dtype, "device": device, "numerics": numerics,
        }  # fmt: skip
        self._finding: dict[str, Any] = {
            "executor": executor, "dtype": dtype, "device": device, "packed": bool(packed), "memory": memory,
        }  # fmt: skip
        if not isinstance(model, ZayaForCausalLM):
            model = find_weights(model, **self._finding)
            tokenizer = tokenizer or Tokenizer.from_folder(model)
        served = self._serve(model)
        self.tokenizer = tokenizer
        self.config = served.config
        self._schedule = _Schedule(served, parse_bytes(memory), max_batch, prefill_chunk)
        self._random = random.Random(seed)
        self._random_lock = threading.Lock()
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()
        self._end_ids = frozenset(tokenizer.eos_ids if tokenizer and tokenizer.eos_ids else self.config.eos_token_ids)
        self._mailboxes = Mailboxes()
        self._worker = Worker(
            self._schedule.scheduler,
            tokenizer,
            before_work=self._schedule.forget_stale_prefixes,
            after_step=self._mailboxes.ring,
        )

    @property
    def device(self) -> str:
        """Where it computes, in the words of torch."""
        return str(self._worker.scheduler.pool.device)

    @property
    def context(self) -> int:
        """The most tokens of a prompt and its reply together, by the model's context and the engine's memory."""
        return min(self.config.max_position_embeddings, self._worker.scheduler.pool.tokens)

    # ---- generate ----

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        n: int = 1,
        params: SamplingParams | None = None,
        **sampling: Any,
    ) -> list[list[Output]]:
        """Answer every prompt `n` times and wait: a list of `n` replies for each prompt.

        Prompts are text (encoded as it is, no chat template) or token ids. `sampling` are the fields of
        `SamplingParams`, in place of `params` or changing some of it. With a seed, sample j of prompt i depends on
        (seed, i, j) alone. Raises ValueError for a prompt or a parameter that can never work.
        """
        params = dataclasses.replace(params or SamplingParams(), **sampling)
        encoded = [self._encoded(prompt) for prompt in prompts]
        replies: list[list[Reply]] = []
        for place, ids in enumerate(encoded):
            seed = None if params.seed is None else derived_seed(params.seed, place)
            replies.append(self._replies(ids, dataclasses.replace(params, seed=seed), n))
        everything = [reply for group in replies for reply in group]
        self._worker.add(everything)
        try:
            return [[reply.done.result() for reply in group] for group in replies]
        except BaseException:
            self._worker.cancel(everything)
            raise

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        on_piece: Listener | None = None,
        keep_state: bool = False,
        matcher: Matcher | None = None,
    ) -> Request:
        """Begin to answer one prompt `n` times; returns at once.

        `on_piece` is called on the engine's thread with every token and must be quick; with it text is decoded as it
        grows. With `keep_state` the state is kept at the end (while memory lasts), so that a further prompt that
        continues prompt and reply is not computed again. `matcher` holds the replies to a form. Sample 0 has the seed
        of `params` itself. Raises ValueError for a prompt or a parameter that can never work.
        """
        replies = self._replies(
            prompt_ids, params or SamplingParams(), n, listener=on_piece, keep_state=keep_state, matcher=matcher
        )
        self._worker.add(replies)
        return Request(self._worker, replies)

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        keep_state: bool = False,
        matcher: Matcher | None = None,
    ) -> AsyncGenerator[Piece]:
        """Pieces of one reply as they come, the last with its `output`; closing the iterator cancels the reply.

        `keep_state`, `matcher` and errors are those of `submit`.
        """
        mailbox, reader = self._mailboxes.of(asyncio.get_running_loop()), PieceReader()
        (reply,) = self._replies(
            prompt_ids,
            params or SamplingParams(),
            1,
            listener=lambda piece: mailbox.post(reader, piece),
            keep_state=keep_state,
            matcher=matcher,
        )

        def post_failure(done: Future[Output]) -> None:
            if error := done.exception():
                mailbox.post(reader, error)

        reply.done.add_done_callback(post_failure)
        self._worker.add([reply])
        try:
            async for piece in reader:
                yield piece
        finally:
            if not reply.done.done():
                self._worker.cancel([reply])

    def matcher(self, constraint: Constraint) -> Matcher:
        """What holds a reply to a grammar. The first one for an engine takes a moment, a second in a large vocabulary.

        Raises ValueError for a grammar that cannot be held to, without a tokenizer, and without llguidance.
        """
        if self.tokenizer is None:
            raise ValueError("grammars need a tokenizer; give Engine one")
        with self._grammars_lock:
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self.config.vocab_size)
        return self._grammars.matcher(constraint)

    async def score(self, prompt_ids: Sequence[int], top: int = 0) -> list[TokenLogprobs]:
        """Log probabilities of a prompt's own tokens after the first, each with the `top` likeliest ones at its place.

        Replies beside it go on. Raises ValueError for a prompt that can never fit.
        """
        prompt = tuple(map(int, prompt_ids))
        self._limit(prompt, 1)
        scoring = Scoring(prompt, top)
        try:
            while not await asyncio.wrap_future(self._worker.soon(scoring.advance)):
                pass
            return scoring.records
        finally:
            with suppress(EngineError):  # closed, and the memory gone with it
                self._worker.soon(scoring.release)

    # ---- weights ----

    def swap_weights(self, source: str | Path | ZayaForCausalLM) -> None:
        """Go on with other weights of the same shape, from one step to the next.

        Replies in progress keep the keys and values that the old weights computed, as in-flight updates of asynchronous
        reinforcement learning do; between quantised and plain weights they are computed anew. Kept prompts are
        forgotten. Raises ValueError where the shape differs, and where a reply in progress has no room any more.
        """
        served = self._serve(source)
        if served.config.with_(dtype=self.config.dtype) != self.config:
            raise ValueError("the new weights are of another shape than the engine's model; make a new Engine for them")
        self._worker.between_steps(lambda scheduler: self._schedule.swap(scheduler, served))

    def forget_prompts(self) -> None:
        """Drop the kept prompts: for weights changed in place where torch cannot tell (through `.data`)."""
        self._worker.between_steps(Scheduler.drop_prefixes)

    # ---- end ----

    def close(self) -> None:
        """End the engine's thread; unfinished replies fail with EngineError."""
        self._worker.close()
        self._borrowed.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if worker := self.__dict__.get("_worker"):
            worker.close(wait=False)

    # ---- inside ----

    def _serve(self, source: str | Path | ZayaForCausalLM) -> Served:
        if isinstance(source, ZayaForCausalLM):
            if self._loading["executor"] == "compiled":
                raise ValueError("the compiled core runs quantised folders, not models in memory; give it a folder")
            return ServedModel(source)
        return serve_folder(find_weights(source, **self._finding), **self._loading)

    def _encoded(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise ValueError("the engine has no tokenizer, so prompts must be token ids; give Engine a tokenizer")
        return self.tokenizer.encode(prompt)

    def _replies(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        n: int,
        *,
        listener: Listener | None = None,
        keep_state: bool = False,
        matcher: Matcher | None = None,
    ) -> list[Reply]:
        if n < 1:
            raise ValueError(f"n is {n}; it must be at least 1")
        if params.stop and self.tokenizer is None:
            raise ValueError("stop strings need a tokenizer; give Engine one, or use stop_token_ids")
        prompt = tuple(map(int, prompt_ids))
        limit = self._limit(prompt, params.max_tokens)
        seed = self._fresh_seed() if params.seed is None else params.seed
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._end_ids)
        return [
            Reply(
                Generation(
                    prompt=prompt,
                    params=params,
                    seed=derived_seed(seed, sample) if sample else seed & 0xFFFFFFFFFFFFFFFF,
                    limit=limit,
                    stop_ids=stop_ids,
                    keep_state=keep_state,
                    matcher=matcher.copy() if matcher else None,
                ),
                ReplyText(self.tokenizer, params.stop) if self.tokenizer and (listener or params.stop) else None,
                listener,
            )
            for sample in range(n)
        ]

    def _limit(self, prompt: tuple[int, ...], max_tokens: int | None) -> int:
        """How many tokens may follow `prompt`; raises ValueError where not one can."""
        if not prompt:
            raise ValueError("the prompt is empty; give at least one token")
        if not 0 <= min(prompt) <= max(prompt) < self.config.vocab_size:
            wrong = min(prompt) if min(prompt) < 0 else max(prompt)
            raise ValueError(f"token id {wrong} is not in the vocabulary of {self.config.vocab_size} tokens")
        pool, context = self._worker.scheduler.pool, self.config.max_position_embeddings
        if len(prompt) >= context:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens but the model's context is {context}; shorten the prompt"
            )
        limit = context - len(prompt)
        if max_tokens is not None:
            limit = min(limit, max_tokens)
        elif len(prompt) < pool.tokens:
            limit = min(limit, pool.tokens - len(prompt))
        if len(prompt) + limit > pool.tokens:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and up to {limit} new ones can never fit: the engine's memory of "
                f"{pool.memory:,} bytes holds {pool.tokens:,} tokens; give it more memory or lower max_tokens"
            )
        return limit

    def _fresh_seed(self) -> int:
        with self._random_lock:
            return self._random.getrandbits(64)


class _Schedule:
    """How to schedule what is served; apart from `Engine`, so that the thread does not keep that alive."""

    def __init__(self, served: Served, memory: int, max_batch: int, prefill_chunk: int) -> None:
        self.served = served
        self._memory, self._max_batch, self._prefill_chunk = memory, max_batch, prefill_chunk

    def scheduler(self) -> Scheduler:
        pool = self.served.pool(memory=self._memory, slots=slots_for(self._max_batch))
        return Scheduler(self.served.executor(pool), max_batch=self._max_batch, prefill_chunk=self._prefill_chunk)

    def swap(self, scheduler: Scheduler, served: Served) -> None:
        # The compiled core and torch lay keys out differently, so neither reads what the other has computed.
        alike = type(served) is type(self.served)
        pool = scheduler.pool if alike else served.pool(memory=self._memory, slots=slots_for(self._max_batch))
        scheduler.exchange(served.executor(pool))
        self.served = served

    def forget_stale_prefixes(self, scheduler: Scheduler) -> None:
        """A trainer that samples from the model it trains changes it in place; what was computed before is stale."""
        if self.served.changed():
            scheduler.drop_prefixes()
