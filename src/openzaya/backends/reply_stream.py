"""The chunks of a streamed reply made into deltas: reasoning apart from content, token ids beside their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from openzaya.backends.chunks import Chunk
from openzaya.backends.failures import UpstreamFailure
from openzaya.backends.protocol import Delta, Usage
from openzaya.backends.upstreams import ThinkingStart, Upstream
from openzaya.chat import ReasoningSplitter
from openzaya.chat.control import THINK_CLOSE, THINK_OPEN


class ReplyReader:
    """Puts one reply together, chunk by chunk.

    While it is unknown whether the template opened the reasoning, text is held back: what looks like content turns
    out to be reasoning when only `</think>` comes. What is learned is kept in `upstream`, so that only the first
    replies of a server wait. `plain` takes everything as content (text completions, continued answers).
    """

    def __init__(self, upstream: Upstream, shown_url: str, *, thinking: bool = True, plain: bool = False) -> None:
        self._upstream = upstream
        self._shown_url = shown_url
        self._thinking = thinking
        self._plain = plain
        self._separated = False
        """The server sets reasoning apart itself, so tags in its content are text."""
        self._splitter: ReasoningSplitter | None = None
        self._held: list[Chunk] = []
        self._window = ""
        """The end of the held text that may hold the beginning of a tag; all of it up to its first visible word."""
        self._past_start = False
        self._placer = _IdPlacer(upstream.think_ids)
        self._called_tools = False
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self.saw_ids = self.saw_logprobs = False

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the server says it did not compute again."""
        return self._usage.cached_tokens if self._usage else 0

    def feed(self, chunk: Chunk) -> list[Delta]:
        """The deltas that a chunk completes."""
        self._finish_reason = chunk.finish_reason or self._finish_reason
        self._usage = chunk.usage or self._usage
        self._called_tools = self._called_tools or bool(chunk.tool_calls)
        self.saw_ids = self.saw_ids or bool(chunk.ids)
        self.saw_logprobs = self.saw_logprobs or bool(chunk.logprobs)
        chunk = _without_end_token(chunk)
        if self._plain:
            return self._separate(replace(chunk, reasoning="", content=chunk.reasoning + chunk.content))
        if chunk.reasoning:
            self._upstream.thinking = ThinkingStart.SERVER
        if chunk.reasoning or (self._splitter is None and self._upstream.thinking is ThinkingStart.SERVER):
            self._separated = True
        if self._separated:
            if not self._held and self._splitter is None:
                return self._separate(chunk)
            return [*self._release(), *self._flush_splitter(), *self._separate(chunk)]
        if self._splitter is not None:
            return self._split(chunk)
        if self._decide(chunk):
            return [*self._release(), *self._split(chunk)]
        self._held.append(replace(chunk, tokens=0))
        return [Delta(tokens=chunk.tokens)] if chunk.tokens else []

    def finish(self, *, complete: bool) -> list[Delta]:
        """What was held back, then the last delta; `complete` says that the server announced the end.

        Raises UpstreamFailure when the stream ended without an end of the reply.
        """
        if self._finish_reason is None and not complete:
            raise UpstreamFailure(f"{self._shown_url} closed the connection in the middle of a reply", retry=True)
        reason = self._finish_reason or "stop"
        if self._held and self._splitter is None:
            if reason == "stop" and self._thinking and self._upstream.thinking is ThinkingStart.UNKNOWN:
                self._upstream.thinking = ThinkingStart.MODEL
            self._start_splitting(opened=self._thinking and self._upstream.thinking is ThinkingStart.PROMPT)
        deltas = [*self._release(), *self._flush_splitter()]
        if reason == "stop" and self._called_tools:
            reason = "tool_calls"
        return [*deltas, Delta(finish_reason=reason, usage=self._usage)]

    def _decide(self, chunk: Chunk) -> bool:
        """Start splitting as soon as the held text shows how its reasoning is marked; True once it has."""
        self._window += chunk.content
        open_id, close_id = self._upstream.think_ids
        start = self._upstream.thinking
        if chunk.tool_calls:
            return self._start_splitting(opened=self._thinking and start is ThinkingStart.PROMPT)
        opens_by_id = open_id is not None and open_id in chunk.ids
        if not self._past_start:
            text = self._window.lstrip()
            if opens_by_id or text.startswith(THINK_OPEN):
                return self._start_splitting(opened=False, learned=ThinkingStart.MODEL)
            if THINK_OPEN.startswith(text) and not (close_id is not None and close_id in chunk.ids):
                return False
            self._past_start = True
        if not self._thinking or start is ThinkingStart.MODEL:
            return self._start_splitting(opened=False)
        if start is ThinkingStart.PROMPT:
            return self._start_splitting(opened=True)
        opens, closes = self._window.find(THINK_OPEN), self._window.find(THINK_CLOSE)
        if (close_id is not None and close_id in chunk.ids) or (closes >= 0 and not 0 <= opens < closes):
            return self._start_splitting(opened=True, learned=ThinkingStart.PROMPT)
        if opens_by_id or opens >= 0:
            return self._start_splitting(opened=False, learned=ThinkingStart.MODEL)
        self._window = self._window[-len(THINK_CLOSE) :]
        return False

    def _start_splitting(self, *, opened: bool, learned: ThinkingStart | None = None) -> bool:
        self._upstream.thinking = learned or self._upstream.thinking
        open_id, close_id = self._upstream.think_ids if self.saw_ids else (None, None)
        self._splitter = ReasoningSplitter(opened=opened, open_id=open_id, close_id=close_id)
        return True

    def _release(self) -> list[Delta]:
        held, self._held = self._held, []
        read = self._separate if self._splitter is None else self._split
        return [delta for chunk in held for delta in read(chunk)]

    def _flush_splitter(self) -> list[Delta]:
        splitter, self._splitter = self._splitter, None
        # A piece without text holds what never became a character, such as the end token.
        pieces = splitter.finish() if splitter is not None else []
        return [_delta(piece.kind, piece.text, piece.ids) for piece in pieces if piece.text]

    def _split(self, chunk: Chunk) -> list[Delta]:
        """A chunk whose text carries the tags."""
        assert self._splitter is not None
        deltas: list[Delta] = []
        for text, index in _tokens_of(chunk, self._upstream.think_ids):
            deltas += [_delta(piece.kind, piece.text, piece.ids) for piece in self._splitter.feed(text, index)]
        if chunk.tool_calls or chunk.tokens or chunk.logprobs:
            deltas.append(Delta(tool_calls=chunk.tool_calls, tokens=chunk.tokens, logprobs=chunk.logprobs))
        return _joined(deltas)

    def _separate(self, chunk: Chunk) -> list[Delta]:
        """A chunk whose reasoning the server set apart itself, or that has none."""
        reasoning_ids, content_ids = self._placer.place(chunk)
        says = chunk.reasoning or chunk.content or chunk.tool_calls or chunk.tokens or chunk.logprobs
        if not (says or reasoning_ids or content_ids):
            return []
        return [
            Delta(
                reasoning=chunk.reasoning,
                content=chunk.content,
                tool_calls=chunk.tool_calls,
                reasoning_ids=reasoning_ids,
                content_ids=content_ids,
                tokens=chunk.tokens,
                logprobs=chunk.logprobs,
            )
        ]


class _IdPlacer:
    """Gives token ids to the text they belong to, where reasoning and content come in fields of their own.

    Ids without text wait: before text they are the first bytes of its first character, at the end of the reply they are
    its end token. Where the tag between reasoning and content is not known by its id, it is the first that waited.
    """

    def __init__(self, think_ids: tuple[int | None, int | None]) -> None:
        self._tags = think_ids
        self._waiting: tuple[int, ...] = ()
        self._last_kind = ""

    def place(self, chunk: Chunk) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of a chunk's reasoning and of its content."""
        if chunk.tool_calls:
            self._waiting, self._last_kind = (), "tools"
            return (), ()
        if chunk.reasoning and chunk.content:
            return self._place_both(chunk)
        ids = tuple(index for index in chunk.ids if index not in self._tags) if chunk.ids else ()
        if not (chunk.reasoning or chunk.content):
            self._waiting += ids
            return (), ()
        kind = "reasoning" if chunk.reasoning else "content"
        crossed_a_tag = self._last_kind not in (kind, "") and None in self._tags
        ids = self._waiting[int(crossed_a_tag) :] + ids
        self._waiting, self._last_kind = (), kind
        return (ids, ()) if kind == "reasoning" else ((), ids)

    def _place_both(self, chunk: Chunk) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Only the closing tag's id can say where in a chunk the reasoning ends; without it no id is given."""
        waiting, self._waiting, self._last_kind = self._waiting, (), "content"
        close_id = self._tags[1]
        if close_id is None or close_id not in chunk.ids:
            return (), ()
        cut = chunk.ids.index(close_id)
        return waiting + chunk.ids[:cut], chunk.ids[cut + 1 :]


def _delta(kind: str, text: str, ids: tuple[int, ...]) -> Delta:
    if kind == "reasoning":
        return Delta(reasoning=text, reasoning_ids=ids)
    return Delta(content=text, content_ids=ids)


def _tokens_of(chunk: Chunk, think_ids: tuple[int | None, int | None]) -> list[tuple[str, int | None]]:
    """A chunk's text and ids in the order in which a splitter takes them.

    The text of several tokens cannot be divided among them except at a tag: it goes with the last of them.
    """
    if not chunk.ids:
        return [(chunk.content, None)] if chunk.content else []
    tags = {index: tag for index, tag in zip(think_ids, (THINK_OPEN, THINK_CLOSE)) if index is not None}
    text = chunk.content
    tokens: list[tuple[str, int | None]] = []
    for index in chunk.ids:
        tag = tags.get(index, "")
        before, found, after = text.partition(tag) if tag else ("", "", text)
        if found:
            if before:
                last = tokens.pop()[1] if tokens else None
                tokens.append((before, last))
            text = after
        tokens.append((found, index))
    if text:
        last_text, last = tokens.pop()
        if last in tags:
            tokens += [(last_text, last), (text, None)]
        else:
            tokens.append((text, last))
    return tokens


def _without_end_token(chunk: Chunk) -> Chunk:
    """The last of several ids in the chunk that stops a reply is its end token, which is no text of it."""
    glued = chunk.finish_reason == "stop" and not chunk.stopped_by_string and len(chunk.ids) > 1
    return replace(chunk, ids=chunk.ids[:-1]) if glued else chunk


def _joined(deltas: list[Delta]) -> list[Delta]:
    """The same deltas with the closing one, which carries counts and logprobs, merged into a text before it."""
    if len(deltas) < 2 or deltas[-1].content or deltas[-1].reasoning:
        return deltas
    *rest, text, counts = deltas
    merged: Mapping[str, Any] = {"tool_calls": counts.tool_calls, "tokens": counts.tokens, "logprobs": counts.logprobs}
    return [*rest, replace(text, **merged)]
