"""What Markovian RSA lives on: many rollouts of one prompt, and prompts of a round that begin alike.

Every figure is the time until all sequences have their first token, with sharing against without it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openzaya.bench.figures import Figure, OnProgress, in_rounds, ratio, seconds_of
from openzaya.bench.subject import Subject
from openzaya.engine.params import SamplingParams
from openzaya.engine.scheduler import Generation, Scheduler, slots_for
from openzaya.mrsa.draws import draw_tails, order_to_share

PROBLEM = "Compute 17 + 25 - 9."
_ENDING = 16
"""Tokens after the last tail."""
_PLAIN = SamplingParams()

Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. Raises ValueError for a number below 1 and for more tails than candidates."""

    rollouts: int = 16
    prompt: int = 4096
    independent: int = 1
    """Prompts that are computed each by itself; their time counts `rollouts / independent` times."""
    candidates: int = 16
    tails: int = 4
    question: int = 96
    tail: int = 96
    """Tokens of a tail: short, since sharing saves about the same part of any length."""
    repeats: int = 3
    solve: bool = True
    """Whether `openzaya solve` is timed as well."""

    def __post_init__(self) -> None:
        for name in ("rollouts", "prompt", "independent", "candidates", "tails", "question", "tail", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tails > self.candidates:
            raise ValueError(f"tails is {self.tails}, more than the {self.candidates} candidates that write them")

    @property
    def aggregation(self) -> int:
        """Tokens of a prompt of the aggregation round."""
        return self.question + self.tails * self.tail + _ENDING

    def fit(self, longest: int) -> None:
        """Raises ValueError where a prompt leaves no room for a token in the model's context of `longest`."""
        for name, length in (("prompt", self.prompt), ("question and tails", self.aggregation)):
            if length >= longest:
                raise ValueError(
                    f"{name} of {length} tokens are beyond the model's context of {longest}; give shorter ones"
                )


def measure_rollouts(subject: Subject, settings: Settings, progress: OnProgress | None = None) -> dict[str, Any]:
    """All figures, as plain values. Raises ValueError for prompts beyond the model's context."""
    settings.fit(subject.config.max_position_embeddings)
    bench = Bench(subject, settings)
    runs: list[tuple[str, Callable[[], float]]] = [
        ("probe", subject.probe),
        ("rollouts of one prompt", bench.rollouts),
        ("independent prompts", bench.independent),
        ("a round that shares", bench.sharing_round),
        ("a round without sharing", bench.plain_round),
    ]
    if settings.solve:
        runs += [("import torch", _import_torch), ("solve", _solve)]
    found = in_rounds(runs, settings.repeats, progress)
    alone = [seconds * settings.rollouts / settings.independent for seconds in found["independent prompts"]]
    report: dict[str, Any] = {
        "probe": {
            "what": subject.facts["probe"],
            "gigabytes_a_second": Figure.of([rate / 1e9 for rate in found["probe"]]).as_json(),
        },
        "rollouts": {
            "seconds": Figure.of(found["rollouts of one prompt"]).as_json(),
            "seconds_independent": Figure.of(alone).as_json(),
            "computed_of_the_independent": settings.independent,
            "times_faster": ratio(alone, found["rollouts of one prompt"]).as_json(),
        },
        "aggregation": {
            "tokens_of_a_prompt": settings.aggregation,
            "tokens_computed": {"sharing": bench.tokens_sharing, "without": settings.candidates * settings.aggregation},
            "seconds": Figure.of(found["a round that shares"]).as_json(),
            "seconds_without_sharing": Figure.of(found["a round without sharing"]).as_json(),
            "times_faster": ratio(found["a round without sharing"], found["a round that shares"]).as_json(),
        },
    }
    if settings.solve:
        report["solve"] = {
            "problem": PROBLEM,
            "seconds": Figure.of(found["solve"]).as_json(),
            "ratio_to_importing_torch": ratio(found["solve"], found["import torch"]).as_json(),
        }
    return report


class Bench:
    """A scheduler over the model, and the prompts that it is given."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self._settings = settings
        wide = max(settings.rollouts, settings.candidates)
        tokens = max(
            (settings.independent + 1) * settings.prompt, 2 * settings.candidates * settings.aggregation
        ) + 64 * slots_for(wide)
        self._scheduler = Scheduler(subject.executor(subject.pool(tokens, slots_for(wide))), max_batch=wide)
        random = np.random.default_rng(0)

        def ids(count: int) -> Prompt:
            return tuple(random.integers(0, subject.config.vocab_size, count).tolist())

        self._prompts = [ids(settings.prompt) for _ in range(settings.independent)]
        self._question = ids(settings.question)
        self._tails = [ids(settings.tail) for _ in range(settings.candidates)]
        drawn = [
            draw_tails(range(settings.candidates), settings.tails, seed=0, round=1, index=index)
            for index in range(settings.candidates)
        ]
        orders = order_to_share(drawn)
        self._shared = [
            (*self._question, *(token for tail in order for token in self._tails[tail]), *ids(_ENDING))
            for order in orders
        ]
        # Of the same lengths, but no two of them begin alike.
        self._apart = [ids(settings.aggregation) for _ in orders]
        beginnings = {order[:length] for order in orders for length in range(1, settings.tails + 1)}
        self.tokens_sharing = settings.question + len(beginnings) * settings.tail + settings.candidates * _ENDING
        # An engine's first pages are cleared as they are first used, which is no part of any prompt's time.
        self._first_tokens([self._question])

    def rollouts(self) -> float:
        """Seconds until all rollouts of the one prompt have a token."""
        return self._timed(self._prompts[:1] * self._settings.rollouts)

    def independent(self) -> float:
        """Seconds until each of the prompts that share nothing has a token."""
        return self._timed(self._prompts)

    def sharing_round(self) -> float:
        """Seconds until every candidate of the aggregation round has a token, beginnings computed once."""
        return self._timed(self._shared)

    def plain_round(self) -> float:
        """The same for prompts of the same lengths that share nothing."""
        return self._timed(self._apart)

    def _timed(self, prompts: Sequence[Prompt]) -> float:
        """Seconds for a first token after every prompt, nothing being kept from before."""
        self._scheduler.drop_prefixes()
        return seconds_of(lambda: self._first_tokens(prompts))

    def _first_tokens(self, prompts: Sequence[Prompt]) -> None:
        for number, prompt in enumerate(prompts):
            self._scheduler.submit(Generation(prompt, _PLAIN, seed=number, limit=1))
        while self._scheduler.busy:
            self._scheduler.step()


def _solve() -> float:
    """Seconds of `openzaya solve` from the start of its process to its end."""
    command = [sys.executable, "-m", "openzaya", "solve", PROBLEM, "--quiet", "--json"]
    return seconds_of(lambda: subprocess.run(command, capture_output=True, check=False))


def _import_torch() -> float:
    """Seconds of a process that only imports torch, below which nothing that computes here can be."""
    return seconds_of(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
