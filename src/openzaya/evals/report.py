"""The report: what every arm scored and cost, with intervals, and how the arms compare on the same problems."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from openzaya.backends.protocol import Usage
from openzaya.evals.arms import Arm, RsaArm, SampledArm
from openzaya.evals.outcomes import Outcome
from openzaya.evals.questions import Question
from openzaya.evals.statistics import Interval, bootstrap_means, percentile_interval, problem_weights, sign_flip_p_value

SCHEMA_VERSION = 1
MACRO, POOLED = "macro", "pooled"

Metric = Literal["mean", "selected"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A mean over problems with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class BenchmarkEntry(_Frozen):
    name: str
    problems: int
    kind: Literal["held-out problems", "file"]
    difficulty: tuple[int, int] | None
    """Lowest and highest among its problems."""


class ArmEntry(_Frozen):
    name: str
    mode: str
    model: str
    preset: str | None = None
    control: str | None = None
    """Where the tails come from, if not from the run itself."""
    matches: str | None = None
    """The arm whose generated tokens decide its M."""
    settings: dict[str, Any]


class Row(_Frozen):
    """One arm over the problems of one scope: a benchmark, or `macro` (mean of benchmarks), or `pooled` (all alike)."""

    arm: str
    scope: str
    problems: int
    candidates: tuple[int, int]
    """Candidates that the mean is over, and a majority votes with: the fewest and the most of any benchmark."""
    mean: Estimate
    selected: Estimate | None
    round_means: tuple[float, ...] = ()
    """Share of right candidates in rounds 0, 1 and so on; without rounds that some problem ended before."""
    rollouts: int
    generated_tokens: int
    """Of all rollouts, failed and cut ones and final calls included."""
    prompt_tokens: int
    cached_tokens: int
    generated_per_problem: float
    """Tokens, in the weighting of the scope."""
    finish_reasons: dict[str, int]
    cut_share: float
    """Rollouts that ended at a token limit or were cut."""
    unanswered_share: float
    """Candidates of the mean without an answer."""
    top_vote_share: float
    """Mean share of the candidates that hold the most frequent answer."""


class Comparison(_Frozen):
    """Two arms on the same problems, paired."""

    arm: str
    against: str
    metric: Metric
    scope: str
    difference: Estimate
    p_value: float
    """Two-sided, by flipping the signs of the problems' differences."""
    better: int
    worse: int
    equal: int


class Report(_Frozen):
    """One evaluation; `schema_version` changes when the meaning of a field does."""

    schema_version: int = SCHEMA_VERSION
    openzaya: str
    commit: str | None
    created: str
    seed: int
    digest: str
    """Of questions, arms, seed and wordings, as in the raw results."""
    resamples: int
    models: dict[str, dict[str, str]]
    benchmarks: tuple[BenchmarkEntry, ...]
    arms: tuple[ArmEntry, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]

    def row(self, arm: str, scope: str) -> Row:
        """Raises KeyError where there is none."""
        for row in self.rows:
            if (row.arm, row.scope) == (arm, scope):
                return row
        raise KeyError(f"the report has no row of arm {arm!r} and scope {scope!r}")

    def comparison(self, arm: str, against: str, metric: Metric, scope: str) -> Comparison:
        """Raises KeyError where there is none."""
        for entry in self.comparisons:
            if (entry.arm, entry.against, entry.metric, entry.scope) == (arm, against, metric, scope):
                return entry
        raise KeyError(f"the report does not compare {arm!r} with {against!r} by {metric} in {scope!r}")

    @property
    def scopes(self) -> tuple[str, ...]:
        """Benchmarks in order, then `macro` and `pooled` where there are several."""
        return tuple(dict.fromkeys(row.scope for row in self.rows))


@dataclass(frozen=True, slots=True)
class _Scope:
    """Problems that are looked at together."""

    name: str
    places: NDArray[np.intp]
    strata: NDArray[np.intp] | None


Figures = tuple[tuple[BenchmarkEntry, ...], tuple[Row, ...], tuple[Comparison, ...]]


def figures(
    questions: Sequence[Question],
    arms: Sequence[Arm],
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    seed: int,
    resamples: int,
) -> Figures:
    """Rows and comparisons of every scope; `outcomes` are in the order of the questions, by the name of the arm."""
    columns = {(arm.name, metric): _column(outcomes[arm.name], metric) for arm in arms for metric in _metrics(arm)}
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    for scope in _scopes(questions):
        keys = list(columns)
        values = np.stack([columns[key][scope.places] for key in keys], axis=1)
        means = bootstrap_means(values, strata=scope.strata, resamples=resamples, seed=_seed(seed, scope.name))
        table = _Table(scope, {key: (values[:, at], means[:, at]) for at, key in enumerate(keys)})
        rows += [_row(arm, [outcomes[arm.name][place] for place in scope.places], table) for arm in arms]
        comparisons += [
            _compare(table, arm.name, against.name, metric, resamples, seed) for arm, against, metric in _pairs(arms)
        ]
    return tuple(_benchmarks(questions)), tuple(rows), tuple(comparisons)


@dataclass(frozen=True, slots=True)
class _Table:
    """Values (problems) and bootstrap means (resamples) of every arm and metric in one scope."""

    scope: _Scope
    columns: Mapping[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]

    @property
    def weights(self) -> NDArray[np.float64]:
        return problem_weights(len(self.scope.places), self.scope.strata)

    def estimate(self, arm: str, metric: Metric) -> Estimate:
        values, means = self.columns[arm, metric]
        return _estimate(percentile_interval(float(values @ self.weights), means))


def _estimate(interval: Interval) -> Estimate:
    return Estimate(**asdict(interval))


def _metrics(arm: Arm) -> tuple[Metric, ...]:
    return ("mean",) if arm.mode == "single" else ("mean", "selected")


def _column(outcomes: Sequence[Outcome], metric: Metric) -> NDArray[np.float64]:
    return np.array([float(getattr(outcome, metric)) for outcome in outcomes])


def _pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm, Metric]]:
    """What is compared: each Markovian RSA arm with its own controls, and with every single and majority arm.

    The last-round mean faces means of single rollouts; what selection returned faces majorities.
    """
    found: list[tuple[Arm, Arm, Metric]] = []
    for arm in arms:
        if not isinstance(arm, RsaArm) or arm.control_of is not None:
            continue
        for other in arms:
            if isinstance(other, SampledArm):
                found.append((arm, other, "mean" if other.mode == "single" else "selected"))
            elif other.control_of == arm.name:
                found += [(arm, other, "mean"), (arm, other, "selected")]
    return found


def _scopes(questions: Sequence[Question]) -> list[_Scope]:
    names = list(dict.fromkeys(question.benchmark for question in questions))
    strata = np.array([names.index(question.benchmark) for question in questions], dtype=np.intp)
    everywhere = np.arange(len(questions), dtype=np.intp)
    scopes = [_Scope(name, np.flatnonzero(strata == place), None) for place, name in enumerate(names)]
    if len(names) > 1:
        scopes += [_Scope(MACRO, everywhere, strata), _Scope(POOLED, everywhere, None)]
    return scopes


def _benchmarks(questions: Sequence[Question]) -> list[BenchmarkEntry]:
    entries = []
    for name in dict.fromkeys(question.benchmark for question in questions):
        members = [question for question in questions if question.benchmark == name]
        levels = [question.difficulty for question in members if question.difficulty is not None]
        entries.append(
            BenchmarkEntry(
                name=name,
                problems=len(members),
                kind="held-out problems" if members[0].problem is not None else "file",
                difficulty=(min(levels), max(levels)) if levels else None,
            )
        )
    return entries


def _row(arm: Arm, outcomes: Sequence[Outcome], table: _Table) -> Row:
    usage = sum((outcome.usage for outcome in outcomes), Usage())
    finish_reasons: Counter[str] = Counter()
    for outcome in outcomes:
        finish_reasons.update(outcome.finish_reasons)
    rollouts = finish_reasons.total()
    weights = table.weights
    depth = min(len(outcome.rounds) for outcome in outcomes)
    tops = [max(outcome.votes.values(), default=0) / outcome.candidates for outcome in outcomes]
    return Row(
        arm=arm.name,
        scope=table.scope.name,
        problems=len(outcomes),
        candidates=(min(each.candidates for each in outcomes), max(each.candidates for each in outcomes)),
        mean=table.estimate(arm.name, "mean"),
        selected=table.estimate(arm.name, "selected") if "selected" in _metrics(arm) else None,
        round_means=tuple(
            float(np.array([outcome.rounds[round] for outcome in outcomes]) @ weights) for round in range(depth)
        ),
        rollouts=rollouts,
        generated_tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        generated_per_problem=float(np.array([each.usage.completion_tokens for each in outcomes]) @ weights),
        finish_reasons=dict(sorted(finish_reasons.items())),
        cut_share=(finish_reasons["length"] + finish_reasons["cut"]) / rollouts,
        unanswered_share=sum(each.unanswered for each in outcomes) / sum(each.candidates for each in outcomes),
        top_vote_share=float(np.array(tops) @ weights),
    )


def _compare(table: _Table, arm: str, against: str, metric: Metric, resamples: int, seed: int) -> Comparison:
    values, means = table.columns[arm, metric]
    other_values, other_means = table.columns[against, metric]
    differences = values - other_values
    scope = table.scope
    interval = percentile_interval(float(differences @ table.weights), means - other_means)
    return Comparison(
        arm=arm,
        against=against,
        metric=metric,
        scope=scope.name,
        difference=_estimate(interval),
        p_value=sign_flip_p_value(
            differences, strata=scope.strata, resamples=resamples, seed=_seed(seed, scope.name, arm, against, metric)
        ),
        better=int(np.count_nonzero(differences > 1e-12)),
        worse=int(np.count_nonzero(differences < -1e-12)),
        equal=int(np.count_nonzero(np.abs(differences) <= 1e-12)),
    )


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")
