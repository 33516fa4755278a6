"""For experiments: what stands in the places of the tails, and a round 0 that several arms share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openzaya.mrsa.candidate import Candidate
from openzaya.mrsa.config import ConfigError, MrsaConfig

TailSource = Literal["own", "shuffled", "empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The controls of one run; by default none, which is Markovian RSA itself.

    `shuffled` puts the tails of another problem in the places of this one's: `foreign_tails[t]` are those of its round
    t, and where this run would show the tail of candidate i it shows the i-th of them, counted round. `empty` keeps the
    prompt and leaves the tails blank. Which candidates are read is the same in every arm.
    """

    tail_source: TailSource = "own"
    foreign_tails: Sequence[Sequence[str]] = ()
    first_round: Sequence[Candidate] = ()
    """Finished candidates of round 0 with tails of the same τ, used instead of running it; their cost counts."""

    def check(self, config: MrsaConfig) -> None:
        """Raise ConfigError where a control lacks what it needs."""
        if self.tail_source == "shuffled" and not (self.foreign_tails and all(self.foreign_tails)):
            raise ConfigError("tail_source is 'shuffled' but foreign_tails lacks a round or its tails; give each some")
        places = sorted(candidate.index for candidate in self.first_round)
        if self.first_round and places != list(range(config.width(0))):
            raise ConfigError(
                f"first_round has the candidates {places}; round 0 of this configuration has 0 to {config.width(0) - 1}"
            )
        longest = max((given.tail.tokens for given in self.first_round if given.tail is not None), default=0)
        if config.rounds and longest > config.tau:
            raise ConfigError(
                f"first_round has a tail of {longest} tokens and τ is {config.tau}; share it at the same τ"
            )

    def shown(self, previous: Sequence[Candidate], places: Sequence[int]) -> list[str]:
        """The texts to show where the tails of these places of the previous round belong."""
        if self.tail_source == "empty":
            return [""] * len(places)
        if self.tail_source == "shuffled" and places:
            pool = self.foreign_tails[min(previous[0].round, len(self.foreign_tails) - 1)]
            return [pool[place % len(pool)] for place in places]
        tails = [previous[place].tail for place in places]
        return [tail.text for tail in tails if tail is not None]
