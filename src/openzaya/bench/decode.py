"""Decoding steps at several numbers of rows and lengths of context, each beside a read of memory in the same round.

    a round:   probe · case · probe · case · … · prompt · (again with competing processes)
    a case:    some steps of the executor, each with the drawing of its tokens, from the same state

Keys and values of the context are laid down, not computed: a step costs the same, and the context may be long. The ids
of a step are drawn evenly, so that its rows go to experts as different tokens do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from openzaya.bench.figures import Figure, OnProgress, busy_processes, in_rounds, ratio, seconds_of
from openzaya.bench.subject import Subject, experts_read, routed, timed_stages
from openzaya.bench.traffic import expected_experts, step_traffic
from openzaya.engine.executor import Executor, PromptChunk, StepBatch
from openzaya.engine.params import SamplingParams

_MOST_STEPS = 64
_FEWEST_STEPS = 3
_PLAIN = SamplingParams()


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. Raises ValueError for a number below 1."""

    rows: tuple[int, ...] = (1, 16, 64)
    """Sequences that decode together, each after `prompt` tokens."""
    prompt: int = 512
    contexts: tuple[int, ...] = ()
    """Lengths at which the fewest rows are measured as well."""
    repeats: int = 7
    competing: int = 0
    """Busy processes beside the second half of every round; 0 leaves that half out."""
    seconds: float = 0.5
    """About how long a case takes in a round."""

    def __post_init__(self) -> None:
        for name, values in (("rows", self.rows), ("contexts", self.contexts)):
            if any(value < 1 for value in values) or not self.rows:
                raise ValueError(f"{name} are {values}; they must be 1 or more")
        for name, value, least in (
            ("prompt", self.prompt, 1),
            ("repeats", self.repeats, 1),
            ("competing", self.competing, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")

    def fit(self, longest: int) -> None:
        """Raises ValueError where a sequence would go beyond `longest` tokens, the model's context."""
        wanted = max(self.prompt, *self.contexts, 0) + _MOST_STEPS
        if wanted > longest:
            raise ValueError(
                f"a context of {wanted - _MOST_STEPS} tokens and {_MOST_STEPS} more to decode are beyond the model's "
                f"context of {longest}; give a shorter --prompt or --context"
            )


@dataclass(frozen=True, slots=True)
class Case:
    """So many rows, each after so many tokens."""

    rows: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.rows} row{'s' if self.rows > 1 else ''} after {self.context:,} tokens"


def cases_of(settings: Settings) -> list[Case]:
    """The cases in the order of a round."""
    rows = sorted(set(settings.rows))
    contexts = sorted(set(settings.contexts) - {settings.prompt})
    return [Case(count, settings.prompt) for count in rows] + [Case(rows[0], context) for context in contexts]


def measure_decode(subject: Subject, settings: Settings, progress: OnProgress | None = None) -> dict[str, Any]:
    """All figures, as plain values. Raises ValueError for a context beyond the model's."""
    settings.fit(subject.config.max_position_embeddings)
    cases = cases_of(settings)
    bench = Bench(subject, cases, settings)
    runs: list[tuple[str, Callable[[], float]]] = []
    for case in cases:
        runs += [(f"probe before {case.name}", subject.probe), (case.name, partial(bench.rate, case))]
    runs += [("probe at the end", subject.probe), ("prompt", bench.prompt_rate)]
    if settings.competing:
        runs += [(f"{case.name}, competing", partial(bench.competing, case)) for case in cases]
    found = in_rounds(runs, settings.repeats, progress)
    probes = [found[name] for name, _ in runs if name.startswith("probe")]
    return {
        "probe": {
            "what": subject.facts["probe"],
            "gigabytes_a_second": Figure.of([rate / 1e9 for rates in probes for rate in rates]).as_json(),
        },
        "decode": [
            _row(subject, case, bench, found, list(zip(probes[place], probes[place + 1], strict=True)), settings)
            for place, case in enumerate(cases)
        ],
        "prefill": {
            "tokens": settings.prompt,
            "tokens_a_second": Figure.of(found["prompt"]).as_json(),
            "ratio_to_one_row": _to_one_row(found["prompt"], found, settings),
        },
    }


def _row(
    subject: Subject,
    case: Case,
    bench: Bench,
    found: dict[str, list[float]],
    probes: Sequence[tuple[float, float]],
    settings: Settings,
) -> dict[str, Any]:
    """The figures of one case; its share of bandwidth is of what the probes right before and after it read."""
    rates = found[case.name]
    experts = bench.experts[case]
    traffic = step_traffic(
        subject.config, subject.weights, rows=case.rows, context=case.context, experts=experts,
        vector_bytes=bench.vector_bytes,
    )  # fmt: skip
    read = [rate / case.rows * traffic.total for rate in rates]
    row: dict[str, Any] = {
        "rows": case.rows,
        "context": case.context,
        "tokens_a_second": Figure.of(rates).as_json(),
        "bytes_a_step": {name: round(size) for name, size in asdict(traffic).items()} | {"total": round(traffic.total)},
        "experts_a_step": {"read": round(experts, 1), "if_even": round(expected_experts(subject.config, case.rows), 1)},
        "share_of_bandwidth": ratio(read, [(before + after) / 2 for before, after in probes]).as_json(),
        "ratio_to_one_row": _to_one_row(rates, found, settings),
    }
    if bench.stages[case]:
        row["milliseconds_by_stage"] = {name: round(1e3 * spent, 3) for name, spent in bench.stages[case].items()}
    if settings.competing:
        beside = ratio(found[f"{case.name}, competing"], rates)
        row["competing"] = {"processes": settings.competing, "ratio_to_quiet": beside.as_json()}
    return row


def _to_one_row(rates: Sequence[float], found: dict[str, list[float]], settings: Settings) -> dict[str, float] | None:
    one = found.get(Case(1, settings.prompt).name)
    return None if one is None else ratio(rates, one).as_json()


class Bench:
    """The state that the cases run on: those of the prompt's length share slots, each longer context has its own."""

    def __init__(self, subject: Subject, cases: Sequence[Case], settings: Settings) -> None:
        most = max(settings.rows)
        longer = [case for case in cases if case.context != settings.prompt]
        sequences = [settings.prompt] * most + [case.context for case in longer for _ in range(case.rows)]
        room = sum(length + _MOST_STEPS for length in sequences) + settings.prompt
        self._settings = settings
        self._pool = subject.pool(room + 64 * (len(sequences) + 1), len(sequences) + 1)
        self._executor: Executor = subject.executor(self._pool)
        self._vocabulary = subject.config.vocab_size
        self.vector_bytes = self._pool.keys.shape[-1] * self._pool.keys.element_size()
        slots = [self._opened(length) for length in sequences]
        self._prompt_slot = self._opened(settings.prompt)
        self._slots: dict[Case, np.ndarray] = {}
        for case in cases:
            first = (
                0
                if case.context == settings.prompt
                else most + sum(other.rows for other in longer[: longer.index(case)])
            )
            self._slots[case] = np.array(slots[first : first + case.rows], dtype=np.int64)
        self.experts: dict[Case, float] = {}
        self.stages: dict[Case, dict[str, float]] = {}
        """Seconds of each part of a step, where the executor tells them."""
        self._steps: dict[Case, int] = {}
        for case in cases:
            self._prepare(case, subject)

    def rate(self, case: Case) -> float:
        """Tokens a second of some steps of one case."""
        steps = self._steps[case]
        return case.rows * steps / seconds_of(lambda: self._decode(case, steps))

    def competing(self, case: Case) -> float:
        """The same beside busy processes."""
        with busy_processes(self._settings.competing):
            return self.rate(case)

    def prompt_rate(self) -> float:
        """Tokens a second of a prompt that is computed in one step."""
        slot, length = self._prompt_slot, self._settings.prompt
        self._pool.lengths[slot] = 0
        ids = np.random.default_rng(1).integers(0, self._vocabulary, length)
        chunk = PromptChunk(slot, ids.tolist(), wants_logits=True)
        return length / seconds_of(lambda: _settled(self._executor.step(StepBatch(chunks=[chunk])).chunk_logits[0]))

    def _opened(self, length: int) -> int:
        slot = self._pool.open()
        assert slot is not None
        if not self._pool.reserve(slot, length + _MOST_STEPS):
            raise ValueError(
                f"the state of a context of {length} tokens does not fit; give a shorter one or fewer rows"
            )
        return slot

    def _prepare(self, case: Case, subject: Subject) -> None:
        """Find out how many steps fill a case's time, and which experts they read."""
        self._decode(case, 1)
        seconds = seconds_of(lambda: self._decode(case, 1))
        steps = math.ceil(self._settings.seconds / seconds)
        self._steps[case] = min(_MOST_STEPS, max(_FEWEST_STEPS, steps))
        with routed(self._executor) as chosen:
            self._decode(case, self._steps[case])
        self.experts[case] = experts_read(chosen, subject.config.num_experts)
        with timed_stages(self._executor) as spent:
            self._decode(case, self._steps[case])
        self.stages[case] = {name: seconds / self._steps[case] for name, seconds in spent.items()}

    def _decode(self, case: Case, steps: int) -> None:
        slots = self._slots[case]
        self._pool.lengths[slots] = case.context
        random = np.random.default_rng(0)
        seeds = np.arange(case.rows, dtype=np.uint64)
        for step in range(steps):
            ids = random.integers(0, self._vocabulary, case.rows)
            result = self._executor.step(StepBatch(decode_slots=slots, decode_ids=ids))
            assert result.decode_logits is not None
            self._executor.sample(result.decode_logits, [_PLAIN] * case.rows, seeds, np.full(case.rows, step))


def _settled(logits: Any) -> float:
    """One number of the scores, which is there only once a device has computed them."""
    return float(logits[0])
