"""Exact tails: the last τ tokens of what a candidate wrote.

A tail is counted in the model's own tokens by the best means at hand, and says which:

- `ids`: the source gave the token ids, and the last τ are decoded;
- `tokenize`: the source's tokenize endpoint encodes the text again;
- `local`: a tokenizer given by the caller does;
- `ratio`: τ is converted by this reply's own characters per reported completion token.

Text is never normalised: a tail is a suffix of what was written, to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from openzaya.backends.protocol import Backend, BackendError, Reply
from openzaya.mrsa.config import MrsaConfig

Exactness = Literal["ids", "tokenize", "local", "ratio"]
LADDER: tuple[Exactness, ...] = ("ids", "tokenize", "local", "ratio")

_REPLACEMENT = "�"


class Tokenizer(Protocol):
    """A tokenizer of the model at hand, where the source has none to offer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a candidate, and how exactly its `tokens` were counted."""

    text: str
    tokens: int
    exactness: Exactness

    @property
    def usable(self) -> bool:
        """Whether there is anything to read in it."""
        return bool(self.text.strip())


@dataclass(frozen=True, slots=True)
class _Section:
    """The part of a reply that its tail is cut from; `ids` is empty where the source gave none."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TailCutter:
    """Cuts tails from replies of one backend; `tokenizer` serves where the backend itself cannot encode."""

    config: MrsaConfig
    backend: Backend
    tokenizer: Tokenizer | None = None

    async def cut(
        self, reply: Reply, *, completion_tokens: int | None = None, characters_per_token: float | None = None
    ) -> Tail:
        """The last τ tokens of the section that `config.tail` names.

        `completion_tokens` is this reply's count where it carries no usage (a cut reply was only counted on its way);
        `characters_per_token` is what other replies of the run measured, for one that reported nothing at all.
        """
        reasoning = _Section(reply.reasoning, tuple(reply.reasoning_ids))
        content = _Section(reply.content, tuple(reply.content_ids))
        ratio = _characters_per_token(reply, completion_tokens) or characters_per_token or _bytes_ratio(reply)
        tau = self.config.tau
        answered = bool(content.text.strip())
        if not reasoning.text.strip() or (
            self.config.tail == "hybrid" and answered and reply.finish_reason in ("stop", "tool_calls")
        ):
            return await self._section_tail(content, tau, ratio)
        if self.config.tail != "whole" or not answered:
            return await self._section_tail(reasoning, tau, ratio)
        answer = await self._section_tail(content, tau, ratio)
        left = tau - answer.tokens - 1  # the line break below stands for the tag that closed the reasoning
        if left < 1 or answer.text != content.text:
            return answer
        thought = await self._section_tail(reasoning, left, ratio)
        worse = max(thought.exactness, answer.exactness, key=LADDER.index)
        return Tail(f"{thought.text}\n{answer.text}", thought.tokens + 1 + answer.tokens, worse)

    async def _section_tail(self, section: _Section, tau: int, ratio: float) -> Tail:
        if not section.text:
            return Tail("", 0, "ids")
        tail = (
            await self._by_ids(section, tau)
            or await self._by_tokenize(section, tau)
            or self._by_tokenizer(section, tau)
            or _by_ratio(section.text, tau, ratio)
        )
        return _at_line_start(section.text, tail) if self.config.cut == "boundary" else tail

    async def _by_ids(self, section: _Section, tau: int) -> Tail | None:
        if not section.ids:
            return None
        if len(section.ids) <= tau:
            return Tail(section.text, len(section.ids), "ids")
        text = await self._decode(section.ids[-tau:])
        if text is None and self.tokenizer is not None:
            text = self.tokenizer.decode(section.ids[-tau:])
        return None if text is None else Tail(_whole_characters(text, section.text), tau, "ids")

    async def _by_tokenize(self, section: _Section, tau: int) -> Tail | None:
        ids = await self._encode(section.text)
        if ids is None:
            return None
        if len(ids) <= tau:
            return Tail(section.text, len(ids), "tokenize")
        text = await self._decode(ids[-tau:])
        return None if text is None else Tail(_whole_characters(text, section.text), tau, "tokenize")

    def _by_tokenizer(self, section: _Section, tau: int) -> Tail | None:
        if self.tokenizer is None:
            return None
        ids = self.tokenizer.encode(section.text)
        if len(ids) <= tau:
            return Tail(section.text, len(ids), "local")
        return Tail(_whole_characters(self.tokenizer.decode(ids[-tau:]), section.text), tau, "local")

    async def _encode(self, text: str) -> list[int] | None:
        try:
            return await self.backend.encode(text)
        except BackendError:
            return None  # the reply itself is whole: a failing tokenize endpoint only costs exactness

    async def _decode(self, ids: Sequence[int]) -> str | None:
        try:
            return await self.backend.decode(ids)
        except BackendError:
            return None


async def tail_of(reply: Reply, config: MrsaConfig, backend: Backend, *, tokenizer: Tokenizer | None = None) -> Tail:
    """The tail of one whole reply under this configuration."""
    return await TailCutter(config, backend, tokenizer).cut(reply)


def _characters_per_token(reply: Reply, completion_tokens: int | None) -> float | None:
    reported = reply.usage.completion_tokens if reply.usage else completion_tokens
    written = len(reply.reasoning) + len(reply.content)
    return written / reported if reported and written else None


def _bytes_ratio(reply: Reply) -> float:
    """Characters per byte: no byte-level token is shorter than a byte, so that no tail comes out too long."""
    text = reply.reasoning + reply.content
    return len(text) / max(1, len(text.encode(errors="surrogatepass")))


def _by_ratio(text: str, tau: int, ratio: float) -> Tail:
    length = max(1, int(tau * ratio))
    tail = text[-length:]
    return Tail(tail, min(tau, round(len(tail) / ratio)), "ratio")


def _whole_characters(decoded: str, source: str) -> str:
    """`decoded` without the remains of a character that was cut at either end.

    Such remains decode to replacement characters that the source text does not have in that place.
    """
    text = decoded
    if text.endswith(_REPLACEMENT) and not source.endswith(_REPLACEMENT):
        text = text.rstrip(_REPLACEMENT)
    while text.startswith(_REPLACEMENT) and not source.endswith(text):
        text = text[1:]
    return text


def _at_line_start(source: str, tail: Tail) -> Tail:
    """The tail from its first whole line on, unless that would leave nothing to read."""
    start = len(source) - len(tail.text)
    if start <= 0 or source[start - 1] == "\n":
        return tail
    _, _, rest = tail.text.partition("\n")
    if not rest.strip():
        return tail
    return Tail(rest, max(1, round(tail.tokens * len(rest) / len(tail.text))), tail.exactness)
