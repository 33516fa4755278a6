"""`POST /v1/completions`: text or token ids continued as they are, with logprobs; no template and no rounds."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from openzaya.backends.protocol import BackendError, Delta, Usage, collect
from openzaya.backends.protocol import Reply as Gathered
from openzaya.engine.params import SamplingParams
from openzaya.mrsa.draws import derive_seed
from openzaya.serve.chat_reply import usage_of
from openzaya.serve.chat_request import Stop, StreamOptions
from openzaya.serve.config import Limits
from openzaya.serve.conversation import Choice, Outcome, Piece, Progress, Started, Tell, all_or_none, counted, together
from openzaya.serve.errors import ApiError, refused
from openzaya.serve.menu import Menu
from openzaya.serve.turns import SharedBackend

Prompt = str | list[Annotated[int, Field(ge=0)]]


class CompletionRequest(BaseModel):
    """A request to continue one prompt or several. OpenAI's own defaults: 16 tokens at temperature 1."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    prompt: Prompt | list[str] | list[list[Annotated[int, Field(ge=0)]]]
    max_tokens: int | None = Field(16, ge=0)
    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    stop: Stop = ()
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class CompletionWork:
    """One prompt and sampling a choice."""

    choices: tuple[tuple[str | list[int], SamplingParams], ...]
    echo: bool
    continues: bool
    """False where the prompt alone is asked for (`max_tokens` 0)."""
    deadline: float


def plan_completion(request: CompletionRequest, menu: Menu, *, context: int | None, limits: Limits) -> CompletionWork:
    """What a request asks for; raises ApiError where it cannot be had or costs more than allowed."""
    if request.model not in (menu.name, f"{menu.name}@single"):
        raise ApiError(
            404,
            f"there is no model {request.model!r} for completions, which run no rounds; there is {menu.name!r}",
            code="model_not_found",
            param="model",
        )
    if request.suffix:
        raise refused("a suffix is not offered: the model continues and does not fill in", param="suffix")
    if request.best_of not in (None, request.n or 1):
        raise refused(f"best_of is {request.best_of}; it must be n, or be left out", param="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise refused("max_tokens is 0; without echo that asks for nothing", param="max_tokens")
    prompts = request.prompts
    if not prompts or not all(prompts):
        raise refused("a prompt is empty; give text or token ids", param="prompt")
    count = len(prompts) * (request.n or 1)
    most = count * (request.max_tokens if request.max_tokens is not None else context or 131072)
    if count > limits.largest_round or most > limits.largest_run:
        raise refused(
            f"the request may generate {most:,} tokens in {count} replies; allowed here are {limits.largest_run:,} in "
            f"{limits.largest_round}: send fewer prompts at once",
            code="run_too_large",
        )
    params = SamplingParams(
        max_tokens=1 if request.max_tokens == 0 else request.max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p or 1.0,
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        stop=request.stop,
        logprobs=request.logprobs,
        echo=bool(request.echo) and request.logprobs is not None,
    )
    seed = secrets.randbits(32) if request.seed is None else request.seed
    choices = tuple(
        (prompt, replace(params, seed=seed if place == 0 else derive_seed(seed, 0, place, "choice")))
        for prompt in prompts
        for place in range(request.n or 1)
    )
    return CompletionWork(choices, bool(request.echo), request.max_tokens != 0, limits.deadline)


async def continue_all(work: CompletionWork, backend: SharedBackend, tell: Tell) -> Outcome:
    """Continue every prompt; raises ApiError or BackendError."""
    several = [
        _continue(prompt, params, index, work, backend, tell) for index, (prompt, params) in enumerate(work.choices)
    ]
    try:
        async with asyncio.timeout(work.deadline):
            return together(await all_or_none(several))
    except TimeoutError:
        raise ApiError(504, f"not complete within {work.deadline:g} s", code="deadline_exceeded") from None


async def _continue(
    prompt: str | list[int],
    params: SamplingParams,
    index: int,
    work: CompletionWork,
    backend: SharedBackend,
    tell: Tell,
) -> Outcome:
    reply = Gathered()

    def take(delta: Delta) -> None:
        tell(Started())
        reply.add(delta)
        if delta.content or delta.logprobs:
            tell(Piece(choice=index, content=delta.content, logprobs=delta.logprobs))

    if work.echo and not params.echo:
        take(Delta(content=await _spelled(prompt, backend)))
    if work.continues:
        async with aclosing(backend.complete(prompt, params)) as deltas:
            async for delta in deltas:
                take(delta)
    elif params.echo:
        take(await _scored(prompt, params, backend))
    else:
        take(Delta(finish_reason="length", usage=Usage()))
    if params.echo and not reply.logprobs:
        raise BackendError("the source gives no logprobs of a prompt; leave echo or logprobs out", status=400)
    choice = Choice(
        finish_reason=reply.finish_reason or "stop",
        content=reply.content,
        logprobs=tuple(reply.logprobs) if params.logprobs is not None else None,
    )
    return Outcome(choices=(choice,), usage=reply.usage or await counted(reply, backend))


async def _spelled(prompt: str | list[int], backend: SharedBackend) -> str:
    text = prompt if isinstance(prompt, str) else await backend.decode(prompt)
    if text is None:
        raise BackendError("no tokenizer is known to spell the ids of an echo; send the prompt as text", status=400)
    return text


async def _scored(prompt: str | list[int], params: SamplingParams, backend: SharedBackend) -> Delta:
    """An echo without the one token that a source has to add to tell of the prompt at all."""
    async with aclosing(backend.complete(prompt, params)) as deltas:
        whole = await collect(deltas)
    count = whole.usage.prompt_tokens if whole.usage else len(whole.logprobs) - 1
    entries = tuple(whole.logprobs[:count])
    text = prompt if isinstance(prompt, str) else "".join(entry["token"] for entry in entries)
    return Delta(content=text, logprobs=entries, usage=whole.usage, finish_reason="length")


class CompletionReply:
    """The reply in OpenAI's shapes: one document, or the chunks of a stream."""

    def __init__(self, request: CompletionRequest, work: CompletionWork, id: str | None = None) -> None:
        self._request = request
        self._head = {
            "id": id or f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model,
        }
        self._offsets: dict[int, int] = {}

    def document(self, outcome: Outcome) -> dict[str, Any]:
        """The whole reply."""
        choices = [
            {
                "index": index,
                "text": choice.content,
                "logprobs": None if choice.logprobs is None else self._logprobs(index, choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(outcome.choices)
        ]
        return {**self._head, "choices": choices, "usage": usage_of(outcome)}

    def chunks_of(self, update: Progress | Piece) -> Iterator[dict[str, Any]]:
        """The chunk that says a piece."""
        if isinstance(update, Piece):
            logprobs = self._logprobs(update.choice, update.logprobs) if update.logprobs else None
            yield self._chunk(update.choice, update.content, logprobs, None)

    def last_chunks(self, outcome: Outcome) -> Iterator[dict[str, Any]]:
        """The ends of the choices, and the usage where it was asked for."""
        for index, choice in enumerate(outcome.choices):
            yield self._chunk(index, "", None, choice.finish_reason)
        if self._request.stream_options is not None and self._request.stream_options.include_usage:
            yield {**self._head, "choices": [], "usage": usage_of(outcome)}

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def _logprobs(self, index: int, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Entries of the chat API in the older shape of this one; offsets go on through a stream."""
        offset = self._offsets.get(index, 0)
        shaped: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            top = {other["token"]: other["logprob"] for other in entry.get("top_logprobs", ())}
            known = entry["logprob"] is not None  # nothing predicts the first token of an echo
            shaped["tokens"].append(entry["token"])
            shaped["token_logprobs"].append(entry["logprob"])
            shaped["top_logprobs"].append({entry["token"]: entry["logprob"]} | top if known else None)
            shaped["text_offset"].append(offset)
            offset += len(entry["token"])
        self._offsets[index] = offset
        return shaped
