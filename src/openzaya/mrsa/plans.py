"""From a place in the run to the request that is sent for it: which tails, which prompt, which sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openzaya.backends.protocol import ChatParams, Message
from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.config import MrsaConfig
from openzaya.mrsa.context import FinalRequest, Room
from openzaya.mrsa.controls import Controls
from openzaya.mrsa.draws import derive_seed, draw_tails, order_to_share
from openzaya.mrsa.journal import Header, hash_of
from openzaya.mrsa.prompts import Prompts, Task, aggregation_messages
from openzaya.mrsa.rollout import Plan


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be answered, and how: everything that decides the requests of a run."""

    messages: Sequence[Message]
    config: MrsaConfig
    task: Task
    prompts: Prompts
    final: FinalRequest
    controls: Controls
    room: Room

    @property
    def final_round(self) -> int:
        """The number under which the final call is kept: the one after the last round."""
        return self.config.rounds + 1

    def width(self, round: int) -> int:
        """Rollouts of this round."""
        return 1 if round == self.final_round else self.config.width(round)

    def limit(self, round: int) -> int | None:
        """Token limit of a rollout of this round."""
        if round == self.final_round and self.final.max_tokens is not None:
            return self.final.max_tokens
        return self.config.limit(round)

    def places(self, round: int, previous: Sequence[Candidate]) -> list[tuple[int, ...]]:
        """Whose tails each candidate of a round reads. One that has none to read starts from the question again."""
        usable = [candidate.index for candidate in previous if candidate.readable]
        if self.config.tails == 1 and round < self.final_round:
            return [(index,) if index in usable else () for index in range(self.width(round))]
        count, seed = self.config.tails, self.config.seed
        return order_to_share([draw_tails(usable, count, seed, round, index) for index in range(self.width(round))])

    def plans(self, round: int, previous: Sequence[Candidate]) -> list[Plan]:
        """The rollouts of a round, given all candidates of the round before."""
        return [self._plan(round, index, places, previous) for index, places in enumerate(self.places(round, previous))]

    def _plan(self, round: int, index: int, places: tuple[int, ...], previous: Sequence[Candidate]) -> Plan:
        messages = aggregation_messages(self.messages, self.controls.shown(previous, places), self.task, self.prompts)
        seed = derive_seed(self.config.seed, round, index)
        limit = self.room.clip(self.limit(round), self._tail_tokens(previous, places))
        params = ChatParams(max_tokens=limit, seed=seed, **self._sampling(round))
        return Plan(round, index, seed, places, messages, params)

    def _tail_tokens(self, previous: Sequence[Candidate], places: Sequence[int]) -> list[int]:
        if self.controls.tail_source != "own":
            return [self.config.tau] * len(places)
        tails = [previous[place].tail for place in places]
        return [tail.tokens for tail in tails if tail is not None]

    def _sampling(self, round: int) -> Mapping[str, Any]:
        config = self.config
        common: dict[str, Any] = {
            "enable_thinking": config.enable_thinking,
            "force_answer": config.force_answer if round >= config.rounds else 0,
        }
        if round < self.final_round:
            return common | {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
                "min_p": config.min_p,
            }
        return common | {
            "temperature": config.final_temperature,
            "top_p": config.final_top_p,
            "top_k": config.final_top_k,
            "min_p": config.final_min_p,
            "stop": self.final.stop,
            "tools": self.final.tools,
            "tool_choice": self.final.tool_choice,
            "response_format": self.final.response_format,
            "extra": self.final.extra,
        }

    def header(self, model: str | None) -> Header:
        """The first entry of this run's journal."""
        shaping = {
            "prompts": self.prompts.digest,
            "tail_source": self.controls.tail_source,
            "foreign_tails": hash_of(self.controls.foreign_tails) if self.controls.foreign_tails else None,
            "final": hash_of(asdict(self.final)),
            "forces_final": self.final.forces_final,
        }
        return Header(
            question_hash=hash_of(list(self.messages)),
            config_hash=hash_of([self.config.digest, shaping]),
            model=model,
            messages=list(self.messages),
            config=self.config.model_dump(),
            task=self.task,
            controls=shaping,
        )
