"""The thread that runs the scheduler, and the replies it writes to.

Other threads only queue commands; commands run between steps, so nothing that they touch changes under a step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from openzaya.chat.tokenizer import Tokenizer
from openzaya.engine.sampling import TokenLogprobs
from openzaya.engine.scheduler import FinishReason, Generation, Scheduler
from openzaya.engine.text import ReplyText, hidden_ids

T = TypeVar("T")


class EngineError(RuntimeError):
    """The engine could not go on with a request: it was closed, or its computation failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One finished reply."""

    token_ids: tuple[int, ...]
    """Every token generated, the end token included where one ended the reply."""
    text: str
    """Without end token, without stop string; empty where the engine has no tokenizer."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One a token, where they were asked for."""
    stop_reason: int | str | None = None
    """The token id or the string that ended the reply with "stop"."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed for this reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a reply grew by."""

    token_ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    """What each token added to the text that may be shown: nothing while a character is unfinished or a stop string
    may have begun, and then with a later token what was held back."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    output: Output | None = None
    """The whole reply, on its last piece."""

    @property
    def text(self) -> str:
        return "".join(self.texts)


Listener = Callable[[Piece], None]
"""Called on the engine's thread; it must be quick."""


@dataclass(slots=True, eq=False)
class Reply:
    """A generation and whoever waits for it."""

    generation: Generation
    text: ReplyText | None
    """None where nobody reads the text while it grows."""
    listener: Listener | None
    done: Future[Output] = field(default_factory=Future)
    shown: list[str] = field(default_factory=list)


class Worker:
    """Owns the scheduler's thread, from the first command until `close`."""

    def __init__(
        self,
        make_scheduler: Callable[[], Scheduler],
        tokenizer: Tokenizer | None,
        *,
        before_work: Callable[[Scheduler], None],
        after_step: Callable[[], None],
    ) -> None:
        """`make_scheduler` is called at the start and again after a step that failed.

        On the worker's thread, `before_work` is called whenever work arrives after a pause, and `after_step` once
        everything that a step or a command produced has gone to its listeners.
        """
        self._make_scheduler = make_scheduler
        self.scheduler = make_scheduler()
        self._tokenizer = tokenizer
        self._hidden = hidden_ids(tokenizer) if tokenizer else frozenset()
        self._before_work, self._after_step = before_work, after_step
        self._replies: dict[Generation, Reply] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="openzaya-engine", daemon=True)
        self._thread.start()

    # ---- from any thread ----

    def add(self, replies: Sequence[Reply]) -> None:
        """Queue replies together. Raises EngineError once the worker is closed."""

        def start() -> None:
            for reply in replies:
                self._replies[reply.generation] = reply
                self.scheduler.submit(reply.generation)

        self._command(start)

    def cancel(self, replies: Sequence[Reply]) -> None:
        """End replies before the next step and free their state; nothing where they have ended."""

        def stop() -> None:
            for reply in replies:
                if self._replies.pop(reply.generation, None) is not None:
                    self.scheduler.cancel(reply.generation)
                    self._end_cancelled(reply)

        with suppress(EngineError):  # closed, so everything has ended already
            self._command(stop)

    def between_steps(self, action: Callable[[Scheduler], T]) -> T:
        """Run `action` while no step runs, and wait for it; its errors are raised here. Not for listeners, which run on
        the thread that would be waited for."""
        return self.soon(action).result()

    def soon(self, action: Callable[[Scheduler], T]) -> Future[T]:
        """Run `action` before the next step, in the order of asking; cancelled before that, it is not run."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action(self.scheduler))
            except Exception as error:
                future.set_exception(error)

        self._command(run)
        return future

    def close(self, *, wait: bool = True) -> None:
        """End the thread; unfinished replies fail with EngineError. Closing twice is harmless."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise EngineError("the engine is closed; make a new one")
            self._commands.append(command)
            self._wake.notify()

    # ---- on the worker's thread ----

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            # Whatever it is, nobody may wait for a thread that is gone.
            with self._wake:
                self._closed = True
            self._fail_all(error)
            self._after_step()
            raise

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self.scheduler.busy or self._closed):
                    self._wake.wait()
                commands, self._commands = self._commands, deque()
                closed = self._closed
            if not self.scheduler.busy:
                self._before_work(self.scheduler)
            for command in commands:
                command()
            if closed:
                self._fail_all(EngineError("the engine was closed before this reply was finished"))
            elif self.scheduler.busy:
                self._step()
            self._after_step()
            if closed:
                return

    def _step(self) -> None:
        try:
            emissions = self.scheduler.step()
        except Exception as error:
            failure = EngineError(f"a step of the engine failed: {error}")
            failure.__cause__ = error
            self._fail_all(failure)
            self.scheduler = self._make_scheduler()
            return
        for emission in emissions:
            reply = self._replies[emission.generation]
            try:
                self._deliver(reply, emission.token_id)
            except Exception as error:  # a reader's own callback must not end the others' replies
                self.scheduler.cancel(reply.generation)
                self._replies.pop(reply.generation, None)
                reply.done.set_exception(error)

    def _deliver(self, reply: Reply, token_id: int) -> None:
        generation = reply.generation
        text = self._shown(reply.text, generation, token_id) if reply.text else ""
        reply.shown.append(text)
        output = None
        if generation.finish_reason is not None:
            del self._replies[generation]
            output = self._output(reply)
        if reply.listener is not None:
            record = tuple(generation.logprobs[-1:])
            reply.listener(Piece(token_ids=(token_id,), texts=(text,), logprobs=record, output=output))
        if output is not None:
            reply.done.set_result(output)

    def _shown(self, text: ReplyText, generation: Generation, token_id: int) -> str:
        """What may be shown after a token, of which an end token is no part; ends the generation at a stop string."""
        shown = "" if generation.finish_reason == "stop" else text.feed(token_id)
        if text.stopped_at is not None:
            if generation.finish_reason is None:
                self.scheduler.finish(generation, "stop")
            generation.finish_reason = "stop"
        return shown + text.finish() if generation.finish_reason is not None else shown

    def _end_cancelled(self, reply: Reply) -> None:
        """Tell the readers of a cancelled reply what there is of it."""
        try:
            if reply.text:
                reply.shown.append(reply.text.finish())
            output = self._output(reply)
            if reply.listener is not None:
                reply.listener(Piece(output=output))
        except Exception as error:
            reply.done.set_exception(error)
        else:
            reply.done.set_result(output)

    def _output(self, reply: Reply) -> Output:
        generation = reply.generation
        assert generation.finish_reason is not None
        ids = tuple(generation.generated)
        ended_by_id = generation.finish_reason == "stop" and ids[-1] in generation.stop_ids
        stop_reason: int | str | None = reply.text.stopped_at if reply.text else None
        if stop_reason is None and ended_by_id:
            stop_reason = ids[-1]
        if reply.text is not None:
            text = "".join(reply.shown)
        elif self._tokenizer is not None:
            shown = ids[:-1] if ended_by_id else ids
            text = self._tokenizer.decode(index for index in shown if index not in self._hidden)
        else:
            text = ""
        return Output(
            token_ids=ids,
            text=text,
            finish_reason=generation.finish_reason,
            logprobs=tuple(generation.logprobs),
            stop_reason=stop_reason,
            prompt_tokens=len(generation.prompt),
            cached_tokens=generation.cached_tokens,
        )

    def _fail_all(self, error: BaseException) -> None:
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply.done.set_exception(error)
