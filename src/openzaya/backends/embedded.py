"""The engine in this process as a source of tokens: chat template in front, reasoning and tool calls split behind.

Importing this module imports torch; whoever may do without an engine imports it when one is wanted.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from openzaya.backends.protocol import (
    BackendError,
    Capabilities,
    ChatParams,
    Delta,
    Message,
    ToolCallDelta,
    Usage,
)
from openzaya.chat import control
from openzaya.chat.encoding import encode_chat
from openzaya.chat.grammar import reply_grammar
from openzaya.chat.reasoning import Piece as Stretch
from openzaya.chat.reasoning import ReasoningSplitter
from openzaya.chat.template import ChatTemplate
from openzaya.chat.tokenizer import Tokenizer
from openzaya.chat.tools import ToolCall, ToolCallParser
from openzaya.engine.constraint import Constraint
from openzaya.engine.engine import Engine, Output, Piece
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import TokenLogprobs, derived_seed
from openzaya.engine.weights import find_weights
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.hub.places import origin_of

_FINDING = ("executor", "dtype", "device", "packed", "memory")
_CLOSE_REASONING = f"\n{control.THINK_CLOSE}\n\n"


class EmbeddedBackend:
    """A `Backend` over an `Engine`: exact token ids everywhere, one prefill for equal prompts.

    Requests that can never work (a prompt beyond the context, a form that no reply can be held to) raise BackendError
    with status 400.
    """

    def __init__(
        self, engine: Engine, template: ChatTemplate, *, name: str | None = None, owns_engine: bool = False
    ) -> None:
        """`owns_engine` closes the engine with the backend. Raises ValueError where the engine has no tokenizer."""
        if engine.tokenizer is None:
            raise ValueError("the engine has no tokenizer, so it cannot chat; give Engine a tokenizer")
        self._engine, self._template, self._owns_engine = engine, template, owns_engine
        self._tokenizer: Tokenizer = engine.tokenizer
        self.device = engine.device
        self.capabilities = Capabilities(
            token_ids=True,
            logprobs=True,
            tokenize=True,
            continue_message=True,
            seed=True,
            prefix_cache=True,
            swap_weights=True,
            context=engine.context,
            model=name,
            local=True,
        )

    @classmethod
    async def open(
        cls,
        source: str | Path | Engine = "tiny",
        *,
        template: ChatTemplate | None = None,
        name: str | None = None,
        **options: Any,
    ) -> EmbeddedBackend:
        """A backend over an engine, or over a new one on what `Engine` takes for a model, with its `options`.

        The chat template is the folder's own, else ZAYA's; `name` identifies the model in journals. Raises ValueError
        where the model cannot be read.
        """
        if not isinstance(source, str | Path):
            return cls(source, template or ChatTemplate.built_in(), name=name)
        return await asyncio.to_thread(cls._load, source, template, name, options)

    @classmethod
    def _load(
        cls, source: str | Path, template: ChatTemplate | None, name: str | None, options: Mapping[str, Any]
    ) -> EmbeddedBackend:
        finding = {option: options[option] for option in _FINDING if option in options}
        folder = find_weights(source, **finding)
        template = template or ChatTemplate.from_folder(folder)
        return cls(Engine(folder, **options), template, name=name or _identity(source, folder), owns_engine=True)

    # ---- replies ----

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncGenerator[Delta]:
        """Answer a conversation. Raises BackendError.

        With `extra["continue_final_message"]` the reply goes on inside the last message. `force_answer` closes a
        reasoning that reaches its limit and grants that many tokens for the answer, for which room is kept in the
        context. The tokens that close it are not sampled, and count as neither reasoning nor completion.
        `response_format` and `tool_choice` hold what follows the reasoning to their form.
        """
        tools = () if params.tool_choice == "none" else params.tools
        prompt = self._prompt(messages, params, tools)
        reply = _ChatReply(self._tokenizer, prompt, tools)
        sampling = _sampling(params)
        constraint = self._constraint(params, reply)
        room = self._engine.context - len(prompt)
        wanted = min(params.max_tokens or room, room)
        closing = self._tokenizer.encode(_CLOSE_REASONING)
        kept = len(closing) + params.force_answer if params.force_answer else 0
        if 0 < kept < room:
            sampling = replace(sampling, max_tokens=min(wanted, room - kept))
        async with aclosing(self._stream(prompt, sampling, constraint, keep_state=kept > 0)) as pieces:
            async for piece in pieces:
                yield reply.feed(piece)
        more = 0
        if kept and reply.finish_reason == "length":
            if reply.in_reasoning:
                reply.write(closing)
                more = params.force_answer
            else:
                # It was cut short for an answer that nothing has to force.
                more = wanted - (sampling.max_tokens or wanted)
        more = min(more, self._engine.context - len(reply.ids))
        if more > 0:
            # A seed of its own: the same one would draw the first chances a second time.
            seed = None if params.seed is None else derived_seed(params.seed, 1)
            sampling = replace(sampling, max_tokens=more, seed=seed)
            async with aclosing(self._stream(reply.ids, sampling, reply.rest_of(constraint))) as pieces:
                async for piece in pieces:
                    yield reply.feed(piece)
        yield reply.last()

    async def complete(self, prompt: str | Sequence[int], params: SamplingParams) -> AsyncGenerator[Delta]:
        """Continue text or token ids as they are; control tokens spelled in text count as such. Raises BackendError."""
        ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if params.echo:
            yield await self._echo(ids, params.logprobs)
        async with aclosing(self._stream(ids, _sampling(params))) as pieces:
            async for piece in pieces:
                output = piece.output
                yield Delta(
                    content=piece.text,
                    content_ids=_without_end(piece),
                    tokens=len(piece.token_ids),
                    logprobs=_logprobs(self._tokenizer, piece),
                    finish_reason=output.finish_reason if output else None,
                    usage=_usage([output]) if output else None,
                )

    # ---- tokens and weights ----

    async def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, special=False))

    async def encode(self, text: str) -> list[int]:
        """Token ids of plain text: a control token spelled in it stays text."""
        return self._tokenizer.encode(text, special=False)

    async def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    async def swap_weights(self, source: str | Path | ZayaForCausalLM) -> None:
        """Go on with the weights of a model or folder of the same shape, from one step of the engine to the next.

        Raises ValueError where they do not fit.
        """
        await asyncio.to_thread(self._engine.swap_weights, source)

    async def aclose(self) -> None:
        """Close the engine where the backend made it."""
        if self._owns_engine:
            await asyncio.to_thread(self._engine.close)

    # ---- inside ----

    def _prompt(self, messages: Sequence[Message], params: ChatParams, tools: Sequence[Mapping[str, Any]]) -> list[int]:
        continued = bool(params.extra.get("continue_final_message"))
        try:
            return encode_chat(
                self._tokenizer,
                self._template,
                messages,
                tools=tools,
                enable_thinking=params.enable_thinking,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
        except ValueError as error:
            raise BackendError(str(error), status=400) from error

    def _constraint(self, params: ChatParams, reply: _ChatReply) -> Constraint | None:
        tokenizer = self._tokenizer
        try:
            grammar = reply_grammar(params.response_format, params.tools, params.tool_choice, tokenizer.control_tokens)
        except ValueError as error:
            raise BackendError(str(error), status=400) from error
        if grammar is None:
            return None
        if reply.in_reasoning and tokenizer.think_close_id is None:
            raise BackendError(
                "the model ends its reasoning with no token of its own, so no form can follow", status=400
            )
        opens = tokenizer.think_open_id if params.enable_thinking else None
        return Constraint(grammar, opens, tokenizer.think_close_id, in_reasoning=reply.in_reasoning)

    async def _echo(self, ids: Sequence[int], top: int | None) -> Delta:
        """A prompt as the beginning of its completion; nothing predicts its first token."""
        text = self._tokenizer.decode(ids)
        if top is None:
            return Delta(content=text, content_ids=tuple(ids))
        with _errors_of_the_engine():
            records = await self._engine.score(ids, top)
        first = {**_spelled(self._tokenizer, ids[0]), "logprob": None, "top_logprobs": []}
        logprobs = (first, *(_entry(self._tokenizer, record) for record in records))
        return Delta(content=text, content_ids=tuple(ids), logprobs=logprobs)

    async def _stream(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        constraint: Constraint | None = None,
        *,
        keep_state: bool = False,
    ) -> AsyncGenerator[Piece]:
        with _errors_of_the_engine():
            # In a thread, since a large grammar takes a while to be read.
            matcher = None if constraint is None else await asyncio.to_thread(self._engine.matcher, constraint)
            stream = self._engine.stream(prompt_ids, sampling, keep_state=keep_state, matcher=matcher)
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    yield piece


@contextmanager
def _errors_of_the_engine() -> Iterator[None]:
    """What fails inside, as the protocol has it."""
    try:
        yield
    except ValueError as error:
        raise BackendError(str(error), status=400) from error
    except RuntimeError as error:
        raise BackendError(f"the embedded engine failed: {error}") from error


def _identity(source: str | Path, folder: Path) -> str:
    """What names a model in journals: of one from the hub the revision too, wherever it is kept."""
    origin = origin_of(folder)
    return f"{origin['repository']}@{origin['commit'][:12]}" if origin else str(source)


class _ChatReply:
    """One chat reply while it grows: all its tokens, split into reasoning, content and tool calls."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]]) -> None:
        self.ids = list(prompt)
        """Prompt and reply, the tokens that closed a reasoning included."""
        self.finish_reason: str | None = None
        self._prompt_length = len(prompt)
        self._tokenizer = tokenizer
        self._splitter = ReasoningSplitter.after_prompt(
            tokenizer.decode(prompt), open_id=tokenizer.think_open_id, close_id=tokenizer.think_close_id
        )
        self._calls = ToolCallParser(tools) if tools else None
        self._called = False
        self._reasoning_tokens = 0
        self._outputs: list[Output] = []
        self._written: list[Stretch] = []
        """What tokens that were not sampled settled; it goes out with the next piece."""

    @property
    def in_reasoning(self) -> bool:
        return self._splitter.in_reasoning

    def rest_of(self, constraint: Constraint | None) -> Constraint | None:
        """What holds for the rest of the reply, which goes on outside its reasoning."""
        if constraint is None:
            return None
        written = self.ids[self._prompt_length :]
        if constraint.closes in written:
            written = written[len(written) - written[::-1].index(constraint.closes) :]
        return replace(constraint, opens=None, in_reasoning=False, begun=tuple(written))

    def feed(self, piece: Piece) -> Delta:
        """The part of the reply that can be shown now."""
        stretches, self._written = self._written, []
        # An end token is of the form, but what was held back before it comes with it.
        shown = [*_without_end(piece), None]
        for token_id, text in zip(shown, piece.texts):
            stretches += self._splitter.feed(text, token_id)
        self.ids += piece.token_ids
        if piece.output is not None:
            self._outputs.append(piece.output)
            self.finish_reason = piece.output.finish_reason
        delta = self._delta(stretches)
        return replace(delta, tokens=len(piece.token_ids), logprobs=_logprobs(self._tokenizer, piece))

    def write(self, ids: Sequence[int]) -> None:
        """Add tokens that were not sampled."""
        self.ids += ids
        for token_id in ids:
            self._written += self._splitter.feed(self._tokenizer.decode([token_id]), token_id)

    def last(self) -> Delta:
        """What was held back, the finish reason and the usage."""
        delta = self._delta(self._written + self._splitter.finish(), ended=True)
        called = self._called and self.finish_reason == "stop"
        return replace(
            delta,
            finish_reason="tool_calls" if called else self.finish_reason,
            usage=_usage(self._outputs, reasoning_tokens=self._reasoning_tokens),
        )

    def _delta(self, stretches: Iterable[Stretch], *, ended: bool = False) -> Delta:
        reasoning, content, calls = "", "", []
        ids: dict[str, list[int]] = {"reasoning": [], "content": []}
        for stretch in stretches:
            ids[stretch.kind] += stretch.ids
            if stretch.kind == "reasoning":
                reasoning += stretch.text
            else:
                content += stretch.text
        if self._calls is not None:
            parts = self._calls.feed(content) + (self._calls.finish() if ended else [])
            content = "".join(part for part in parts if isinstance(part, str))
            calls = [_tool_call(part) for part in parts if isinstance(part, ToolCall)]
            self._called = self._called or bool(calls)
        self._reasoning_tokens += len(ids["reasoning"])
        return Delta(
            reasoning=reasoning,
            content=content,
            tool_calls=tuple(calls),
            reasoning_ids=tuple(ids["reasoning"]),
            content_ids=tuple(ids["content"]),
        )


def _sampling(params: SamplingParams) -> SamplingParams:
    """The sampling part of `params`, which may be `ChatParams`."""
    return SamplingParams(**{name: getattr(params, name) for name in SamplingParams.__dataclass_fields__})


def _without_end(piece: Piece) -> tuple[int, ...]:
    """The ids of a piece but for the end token that the last one may be."""
    ended_by_id = piece.output is not None and isinstance(piece.output.stop_reason, int)
    return piece.token_ids[:-1] if ended_by_id else piece.token_ids


def _tool_call(call: ToolCall) -> ToolCallDelta:
    return ToolCallDelta(index=call.index, id=f"call_{uuid.uuid4().hex}", name=call.name, arguments=call.arguments)


def _usage(outputs: Sequence[Output], *, reasoning_tokens: int = 0) -> Usage:
    """Usage of a reply that was generated in one or two goes, the prompt counted once."""
    return Usage(
        prompt_tokens=outputs[0].prompt_tokens,
        completion_tokens=sum(len(output.token_ids) for output in outputs),
        cached_tokens=outputs[0].cached_tokens,
        reasoning_tokens=reasoning_tokens,
    )


def _logprobs(tokenizer: Tokenizer, piece: Piece) -> tuple[Mapping[str, Any], ...]:
    """One entry a token, as in the `logprobs.content` of OpenAI's chat API."""
    return tuple(_entry(tokenizer, record) for record in piece.logprobs)


def _entry(tokenizer: Tokenizer, record: TokenLogprobs) -> dict[str, Any]:
    top = [{**_spelled(tokenizer, token_id), "logprob": logprob} for token_id, logprob in record.top]
    return {**_spelled(tokenizer, record.token_id), "logprob": record.logprob, "top_logprobs": top}


def _spelled(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(token_id)
    return {"token": spelled.decode("utf-8", errors="replace"), "bytes": list(spelled)}
