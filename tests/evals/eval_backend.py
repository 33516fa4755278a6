"""A model in memory for evaluations: a reply is a pure function of prompt and seed, one token a character."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from openzaya.backends.protocol import BackendError, Capabilities, ChatParams, Delta, Message, Usage

Kind = Literal["plain", "own", "other", "empty"]
"""What a prompt shows: the question alone, or around tails of its own, of another problem, or blank ones."""

EVEN: Mapping[Kind, float] = {"plain": 0.5, "own": 0.5, "other": 0.5, "empty": 0.5}

_TAG = re.compile(r"Q\d\d;")


@dataclass
class PretendModel:
    """Knows the answers and gives them with the chance of `skill`; every request is logged in `calls`.

    Its thoughts repeat a tag of their problem (`Q07;`), so that every tail of eight tokens tells where it is from.
    """

    answers: dict[str, str]
    """Right answers by question; a prompt begins with its question."""
    skill: Mapping[Kind, float] = field(default_factory=lambda: EVEN)
    fails: float = 0.0
    """Chance that a sampled rollout fails halfway; greedy ones never do."""
    name: str = "pretend"
    thought: int = 40
    """Tokens of a long thought; half of the replies think a quarter as long."""
    die_after: int | None = None
    """Replies after which everything is cancelled, as by a kill."""
    calls: list[tuple[str, ChatParams]] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(token_ids=True, tokenize=True, seed=True, context=4096, model=self.name, local=True)

    def kind(self, prompt: str) -> tuple[str, Kind]:
        """The question of a prompt, and what the prompt shows."""
        questions = list(self.answers)
        question = max((each for each in questions if prompt.startswith(each)), key=len)
        tags = set(_TAG.findall(prompt))
        if prompt == question:
            return question, "plain"
        assert len(tags) < 2
        own = f"Q{questions.index(question):02d};"
        return question, "empty" if not tags else "own" if tags == {own} else "other"

    async def chat(self, messages: Sequence[Message], params: ChatParams) -> AsyncIterator[Delta]:
        prompt = messages[-1]["content"]
        self.calls.append((prompt, params))
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            async for delta in self._reply(prompt, params):
                yield delta
        finally:
            self.open_now -= 1

    async def _reply(self, prompt: str, params: ChatParams) -> AsyncIterator[Delta]:
        await asyncio.sleep(0)
        if self.die_after is not None and len(self.calls) > self.die_after:
            raise KeyError("killed")
        question, kind = self.kind(prompt)
        # Greedy does not depend on the seed.
        generator = random.Random(f"{self.name}/{prompt}/{params.seed if params.temperature else None}")
        answer = self.answers[question]
        if generator.random() >= self.skill[kind]:
            answer = str(-1 - generator.randrange(3))
        length = self.thought if generator.random() < 0.5 else self.thought // 4
        thought = f"Q{list(self.answers).index(question):02d};" * (length // 4)
        length = len(thought)
        if params.temperature and generator.random() < self.fails:
            ids = thought[:5].encode()
            yield Delta(reasoning=thought[:5], reasoning_ids=tuple(ids), tokens=len(ids))
            raise BackendError("the server went away", status=502)
        text = thought + f"\\boxed{{{answer}}}"
        cut = text if params.max_tokens is None else text[: params.max_tokens]
        reasoning, content = cut[:length], cut[length:]
        yield Delta(reasoning=reasoning, reasoning_ids=tuple(reasoning.encode()))
        yield Delta(content=content, content_ids=tuple(content.encode()))
        usage = Usage(prompt_tokens=len(prompt), completion_tokens=len(cut))
        yield Delta(finish_reason="stop" if cut == text else "length", usage=usage)

    def complete(self, prompt: Any, params: Any) -> AsyncIterator[Delta]:
        raise NotImplementedError

    async def count(self, text: str) -> int | None:
        return len(text)

    async def encode(self, text: str) -> list[int] | None:
        return list(text.encode())

    async def decode(self, ids: Sequence[int]) -> str | None:
        return bytes(ids).decode()

    async def swap_weights(self, source: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise AssertionError("a backend of the caller's own must stay open")
